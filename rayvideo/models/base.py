"""What a text-to-video family must offer to be tuned; a family is one file beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.editing import Generators, Predict, guided, normal
from rayvideo.errors import UserError
from rayvideo.schedules import Schedule

T = TypeVar("T")
Part = Literal["denoiser", "vae", "text"]
PARTS: tuple[Part, ...] = ("denoiser", "vae", "text")


class ModelError(UserError, RuntimeError):
    """A model or an adapter can't be loaded, or a part of it that was not loaded is needed."""


@dataclass(frozen=True)
class Posterior:
    """What the VAE's encoder says of a clip: a normal distribution, in the VAE's own units."""

    mean: Tensor
    """[B, C, F, h, w]"""
    logvar: Tensor
    """Log-variance, [B, C, F, h, w]."""
    scale: float
    """Factor from the VAE's units to the denoiser's."""

    def sample(self, generator: Generators = None) -> Tensor:
        """Latents as the denoiser sees them, [B, C, F, h, w]: scale·(mean + σ·N(0, 1))."""
        noise = normal(self.mean.shape, generator, self.mean.device)
        return self.scale * (self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.dtype))


class VideoModel(ABC):
    """A frozen text-to-video model in eval mode: noise prediction, VAE and text tower behind one set of names."""

    schedule: Schedule
    """How this model noises and denoises."""
    scheduler: Any
    """The diffusers scheduler that `schedule` reads its numbers from."""
    device: torch.device
    dtype: torch.dtype
    """The denoiser's number format; VAE and text tower stay in fp32."""

    _denoiser: nn.Module | None

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise. A trainer may put an engine that wraps it in its place."""
        return self._need(self._denoiser, "denoiser")

    @denoiser.setter
    def denoiser(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, parts: Sequence[Part], weights: bool = True) -> Self:
        """Load `parts` from a pipeline folder or hub id; without `weights` as shapes alone, on the meta device.

        Raises:
            ModelError: naming what is missing, damaged, or of another kind.
        """

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings [B, L, C] in fp32, padded to the text tower's full length."""

    @abstractmethod
    def encode_frames(self, frames: Tensor) -> Posterior:
        """Posterior of clips [B, F, 3, H, W] with pixels in [0, 1]."""

    @abstractmethod
    def posterior(self, mean: Tensor, logvar: Tensor) -> Posterior:
        """The posterior that stored `mean` and `logvar` came from."""

    @abstractmethod
    def decode_frames(self, latents: Tensor, indices: Tensor | None = None) -> Tensor:
        """Pixels [B, S, 3, H, W] of frames `indices` [B, S] of latents [B, C, F, h, w]; None decodes all frames.

        Nominally in [0, 1], but not clamped; differentiable. The cost is that of the chosen frames alone.
        """

    @abstractmethod
    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predicted noise [B, C, F, h, w] at `timestep` ([] or [B]), in the latents' number format."""

    def guided(self, prompt_embeds: Tensor, unconditional: Tensor, scale: float) -> Predict:
        """The prediction for prompts [B, L, C] with classifier-free guidance away from the empty one [1, L, C].

        A `scale` of 1 is the prediction for the prompts alone, at half the cost.
        """
        if scale != 1:
            prompt_embeds = torch.cat([unconditional.expand_as(prompt_embeds), prompt_embeds])
        prompt_embeds = prompt_embeds.to(self.device)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            return self.predict(latents, timestep, prompt_embeds)

        return predict if scale == 1 else guided(predict, scale)

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of the latents of a clip; `ModelError` if the model can't make that size."""

    @property
    @abstractmethod
    def prompt_shape(self) -> tuple[int, int]:
        """(L, C) of a prompt's embedding."""

    @property
    @abstractmethod
    def prompt_width(self) -> int:
        """C of the embeddings that the denoiser takes."""

    @abstractmethod
    def enable_checkpointing(self) -> None:
        """Recompute the activations of the denoiser's and the VAE decoder's blocks in the backward pass."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move every loaded part."""

    @staticmethod
    def _need(part: T | None, name: Part) -> T:
        if part is None:
            raise ModelError(f"the model was loaded without its {name!r} part; add {name!r} to load_model's parts")
        return part
