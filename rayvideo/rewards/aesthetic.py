"""LAION's aesthetic predictor v2 (improved-aesthetic-predictor): how people would rate a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from rayvideo.rewards.base import RewardError
from rayvideo.rewards.clip import check_model, clip_shapes, load_clip, preprocessing
from rayvideo.rewards.judge_files import check_file, read_weights
from rayvideo.rewards.pixels import Resize
from rayvideo.rewards.towers import ImageTower, check_batch
from rayvideo.weights import misfits

CLIP = "openai/clip-vit-large-patch14"
EXAMPLE = "sac+logos+ava1-l14-linearMSE.pth"
WIDTHS = (1024, 128, 64, 16, 1)


class Aesthetic(ImageTower):
    """Rating of a frame from 1 to 10, by a head on the unit-length features of CLIP ViT-L/14; captions don't matter."""

    differentiable = True
    reads_captions = False
    model: Any  # a CLIPVisionModelWithProjection; the library is untyped

    def __init__(self, model: Any, head: nn.Sequential, preprocess: dict[str, Any], *, resize: Resize = "bilinear"):
        """Wrap an image tower and the head on its features; `load` is the usual way in."""
        super().__init__(**preprocess, resize=resize)
        self.model = model.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False)

    @classmethod
    def check(cls, checkpoint: str | Path | None, *, clip: str | Path = CLIP, **options: Any) -> None:
        """Refuse a head that is not there, and a CLIP that is neither a folder nor may be a hub id."""
        check_file(checkpoint, "aesthetic", EXAMPLE)
        check_model(clip, CLIP, "options.clip")

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        resize: Resize = "bilinear",
        dtype: torch.dtype = torch.float32,
        clip: str | Path = CLIP,
    ) -> Aesthetic:
        """Load the head from a file such as sac+logos+ava1-l14-linearMSE.pth, and CLIP from a folder or hub id.

        Raises:
            RewardError: if a file is missing, truncated, holds code, or if head and CLIP don't fit each other.
        """
        weights = read_weights(check_file(checkpoint, "aesthetic", EXAMPLE))
        model = load_clip(CLIPVisionModelWithProjection, clip, dtype)
        head = build_head(model.config.projection_dim)
        named = nn.ModuleDict({"layers": head})  # as the file's names begin
        if wrong := misfits(named.state_dict(), weights):
            raise RewardError(
                f"{checkpoint} is no head for the features of {clip}: {len(wrong)} tensors are missing, unknown or of "
                f"another shape, such as {wrong[0]!r}"
            )
        named.load_state_dict(weights)
        return cls(model, head, preprocessing(model.config, clip), resize=resize)

    @classmethod
    def shapes(
        cls,
        checkpoint: str | Path | None,
        resize: Resize = "bilinear",
        dtype: torch.dtype = torch.float32,
        clip: str | Path = CLIP,
    ) -> Aesthetic:
        """Tower and head without weights; of CLIP only configurations are read."""
        model = clip_shapes(CLIPVisionModelWithProjection, clip, dtype)
        read = preprocessing(model.config, clip)
        with torch.device("meta"):
            return cls(model, build_head(model.config.projection_dim), read, resize=resize)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Features [N, D] by the image tower and its projection."""
        return self.model(pixels.to(self.model.visual_projection.weight.dtype)).image_embeds

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Ratings [N] in fp32 of frames [N, 3, H, W] in [0, 1]; differentiable in the frames."""
        check_batch(frames, prompts)
        return self.head(self.frame_features(frames)).squeeze(-1)


def build_head(features: int) -> nn.Sequential:
    """The published head, untrained: linear layers and dropout, with nothing in between that is not linear."""
    linear = [nn.Linear(before, after) for before, after in zip((features, *WIDTHS), WIDTHS, strict=False)]
    dropout = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
    return nn.Sequential(linear[0], dropout[0], linear[1], dropout[1], linear[2], dropout[2], linear[3], linear[4])
