"""How decoded pixels become what a judge takes: clamped, then resized plainly (the release's way) or officially."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resize = Literal["bilinear", "bicubic"]
"""`resize` of a recipe's judge: "bilinear" as InstructVideo trains, "bicubic" as the judge's official scorer does."""
Framing = Literal["letterbox", "crop"]
"""What an official scorer does with frames that aren't square: black bars (HPSv2), or only the middle (CLIP)."""


def resize_frames(frames: Tensor, size: tuple[int, int], mode: Resize, framing: Framing = "letterbox") -> Tensor:
    """Resize [..., 3, H, W] in [0, 1] to `size`, differentiably in either mode.

    bilinear: no antialias, stretched to `size`. bicubic: antialiased, as `letterbox` or `crop` says. Frames that have
    the size already come back as they are.
    """
    if frames.shape[-2:] == size:
        return frames
    if frames.ndim != 4:  # of clips, frame by frame
        return resize_frames(frames.flatten(0, -4), size, mode, framing).unflatten(0, frames.shape[:-3])
    if mode == "bilinear":
        return F.interpolate(frames, size, mode="bilinear", align_corners=False)
    return letterbox(frames, size) if framing == "letterbox" else crop(frames, size)


def letterbox(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """The longer side fills `size`, black bars fill the rest; values may leave [0, 1], as they do in `hpsv2`."""
    height, width = frames.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = (round(height * scale), round(width * scale))
    resized = F.interpolate(frames, inner, mode="bicubic", align_corners=False, antialias=True)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return F.pad(resized, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top))


def crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """The shorter side fills `size`, of the longer one the middle is kept.

    CLIP's processor resizes pictures of 8 bits: clamped after each axis as here, but also rounded, which moves a pixel
    by up to 2/255.
    """
    height, width = frames.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    # The library cuts fractions of a pixel off; 1e-6 is for scales that only float arithmetic made fractions of.
    outer = (max(size[0], int(height * scale + 1e-6)), max(size[1], int(width * scale + 1e-6)))
    resized = frames
    for target in ((height, outer[1]), outer):
        resized = F.interpolate(resized, target, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (outer[0] - size[0]) // 2, (outer[1] - size[1]) // 2
    return resized[..., top : top + size[0], left : left + size[1]]


def clamp_pixels(frames: Tensor, mode: Literal["straight_through", "hard"]) -> Tensor:
    """Clamp pixels to [0, 1]; "straight_through" passes the gradient of clamped pixels on, "hard" kills it."""
    return frames.clamp(0, 1) if mode == "hard" else _StraightThroughClamp.apply(frames)


class _StraightThroughClamp(torch.autograd.Function):
    @staticmethod
    def forward(frames: Tensor) -> Tensor:
        return frames.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
