"""How different the clips of one caption are under several seeds: what falls when a model draws one picture for all."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rayvideo.evaluation.metrics import FLAT, GRID


def coarse(clip: Tensor) -> Tensor:
    """What `diversity` compares: frames [F, 3, H, W] in [0, 1] over cells of a 16 x 16 grid, [F, 3, 16, 16]."""
    return F.adaptive_avg_pool2d(clip, GRID)


def diversity(clips: Tensor) -> Tensor:
    """Root mean square distance of two seeds' clips, in units of their contrast.

    0 where all seeds give one clip; 1 for pictures that have nothing but their mean colours in common; higher where
    these differ, too. Divided by contrast, so that clips which only became more vivid are no more diverse.

    Args:
        clips: `coarse` clips of one caption, [S, F, 3, 16, 16], of two seeds or more.

    Raises:
        ValueError: fewer than two.
    """
    if len(clips) < 2:
        raise ValueError(f"diversity compares the clips of at least two seeds, got {len(clips)}")
    variance = (clips - clips.mean((-2, -1), keepdim=True)).square().mean().clamp(min=FLAT**2)
    # The variance over seeds, unbiased, is half of the mean squared distance of two.
    return (clips.var(0).mean() / variance).sqrt()
