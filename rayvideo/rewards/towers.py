"""What judges built on CLIP share: frames to features, captions to features, and their cosine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rayvideo.rewards.base import Reward, RewardError
from rayvideo.rewards.pixels import Framing, Resize, resize_frames

CACHED_CAPTIONS = 4096


class ImageTower(Reward):
    """A judge that sees frames through a frozen image tower."""

    framing: ClassVar[Framing] = "crop"
    size: tuple[int, int]
    mean: Tensor
    std: Tensor

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], resize: Resize):
        """Frames are resized to `size` (height, width), then normalised by each channel's `mean` and `std`."""
        super().__init__()
        self.size = size
        self.resize = resize
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Features [N, D] of normalised pixels [N, 3, *size], which come in fp32."""

    def frame_features(self, frames: Tensor) -> Tensor:
        """Unit-length features [N, D] in fp32 of frames [N, 3, H, W] in [0, 1]; differentiable."""
        pixels = (resize_frames(frames.float(), self.size, self.resize, self.framing) - self.mean) / self.std
        return F.normalize(self.encode_pixels(pixels).float(), dim=-1)


class TwoTowers(ImageTower):
    """A judge whose score is the cosine of a frame's and its caption's features."""

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], resize: Resize):
        """As `ImageTower`; the features of captions are kept."""
        super().__init__(size, mean, std, resize)
        self._captions: dict[str, Tensor] = {}

    @abstractmethod
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Features [M, D] of captions."""

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [N] in fp32 of frames [N, 3, H, W] in [0, 1] with their N captions; differentiable in the frames."""
        check_batch(frames, prompts)
        return (self.frame_features(frames) * self.caption_features(prompts)).sum(dim=-1)

    @torch.no_grad()
    def caption_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit-length features [N, D] in fp32; each caption meets the text tower once."""
        device = self.mean.device
        for caption in dict.fromkeys(prompts):
            if caption not in self._captions:
                # Alone: in the last bits, features depend on what else is in the batch, and on its padding.
                self._captions[caption] = F.normalize(self.encode_captions([caption]).float(), dim=-1)[0]
        batch = torch.stack([self._captions[caption].to(device) for caption in prompts])
        while len(self._captions) > CACHED_CAPTIONS:
            del self._captions[next(iter(self._captions))]
        return batch


def check_batch(frames: Tensor, prompts: Sequence[str]) -> None:
    """Refuse frames that are not floats [N, 3, H, W], and prompts that are not N."""
    if frames.ndim != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise RewardError(f"frames must be floats [N, 3, H, W], but are {frames.dtype} {list(frames.shape)}")
    if isinstance(prompts, str) or len(prompts) != len(frames):
        raise RewardError(f"{len(frames)} frames need {len(frames)} captions, but got {prompts!r}")
