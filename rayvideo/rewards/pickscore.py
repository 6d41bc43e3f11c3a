"""PickScore (Kirstain et al., 2023, arXiv 2305.01569): a CLIP ViT-H tuned on which of two pictures people picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from rayvideo.rewards.clip import CLIPScore


class PickScore(CLIPScore):
    """Cosine of frame and caption times the model's learned logit scale (about 100); the release gives about 20."""

    prefers_clean = True
    example: ClassVar[str] = "yuvalkirstain/PickScore_v1"

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] in fp32 of frames [N, 3, H, W] in [0, 1] with their N captions; differentiable in the frames."""
        return super().score(frames, prompts) * self.model.logit_scale.exp().float()
