"""What every differentiable judge must get right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from rayvideo.rewards import Reward


def check_slope(judge: Reward, captions: Sequence[str], size: int, reach: float) -> None:
    """The gradient in frames of `size` is the slope that the scores have over ± `reach`; the judge itself gets none."""
    frames = torch.rand(len(captions), 3, size, size, requires_grad=True)
    judge.score(frames, captions).sum().backward()
    assert frames.grad is not None
    direction = frames.grad / frames.grad.norm()
    with torch.no_grad():
        above, below = (judge.score(frames + step * direction, captions).sum() for step in (reach, -reach))
    assert ((above - below) / (2 * reach)).item() == pytest.approx(frames.grad.norm().item(), rel=0.02)
    assert all(p.grad is None and not p.requires_grad for p in judge.parameters())
