"""What a text-to-video family must offer to be tuned; a family is one file beside this one, or one of the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.editing import Predict, guided, recompute
from rayvideo.errors import UserError
from rayvideo.models.decoding import Where
from rayvideo.models.posterior import Normaliser, Posterior
from rayvideo.schedules import Schedule

T = TypeVar("T")
Part = Literal["denoiser", "low", "vae", "text"]
"""What a process may load of a model. "low" is for models with two denoisers: of them that for little noise alone."""
PARTS: tuple[Part, ...] = ("denoiser", "vae", "text")
"""What a whole model is loaded of: a process loads only the parts that it runs."""


class ModelError(UserError, RuntimeError):
    """A model or an adapter can't be loaded, or a part of it that was not loaded is needed."""


def nearest(value: int, step: int, first: int = 0) -> str:
    """Of the numbers first, first + step, … those beside a value that is none of them, in words; else no words."""
    below = value - (value - first) % step
    return "" if below == value else " or ".join(str(number) for number in (below, below + step) if number > 0)


class VideoModel(ABC):
    """A frozen text-to-video model in eval mode: denoiser, VAE and text tower behind one set of names.

    A class of your own is named `module:Class` in the recipe's `model.family` (docs/models.md). `load_model` calls its
    `load` and `to`; a method whose part was not loaded raises the `ModelError` of `_need`.
    """

    component: ClassVar[str] = "unet"
    """What diffusers' pipelines call the denoiser; names in a LoRA file for them start with it. A second one's is the
    same with "_2"."""
    denoisers: ClassVar[tuple[str, ...]] = ()
    """Class names of its denoisers: an adapter's configuration has that of the one it was trained on."""

    schedule: Schedule
    """How this model noises and denoises."""
    scheduler: Any
    """The diffusers scheduler that `schedule` reads its numbers from."""
    device: torch.device
    """Where the model computes; `to` sets it."""
    dtype: torch.dtype
    """The denoiser's number format; VAE and text tower stay in fp32."""

    _denoiser: nn.Module | None = None
    _vae: Any = None
    _text_encoder: Any = None
    _tokenizer: Any = None

    def _hold(self, denoiser: nn.Module | None, vae: Any, text_encoder: Any, tokenizer: Any) -> None:
        """Keep the parts that were loaded, None for others: frozen and in eval mode, where dropout is off."""
        self._denoiser, self._vae, self._text_encoder, self._tokenizer = denoiser, vae, text_encoder, tokenizer
        for module in self._modules():
            module.requires_grad_(False).eval()
        self.device = torch.device("cpu")

    def _modules(self, parts: Sequence[Part] = PARTS) -> list[nn.Module]:
        held = {"denoiser": self._denoiser, "vae": self._vae, "text": self._text_encoder}
        return [module for part, module in held.items() if part in parts and module is not None]

    def tensors(self) -> list[Tensor]:
        """Weights and buffers of all parts that were loaded."""
        return [tensor for part in self._modules() for tensor in (*part.parameters(), *part.buffers())]

    @property
    def denoiser(self) -> nn.Module:
        """The network that `predict` asks. A trainer puts the engine that wraps it in its place."""
        return self._need(self._denoiser, "denoiser")

    @denoiser.setter
    def denoiser(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, parts: Sequence[Part], weights: bool = True) -> Self:
        """Load `parts` from a pipeline folder or hub id onto the CPU; without `weights` as shapes alone, on the meta
        device, with only configurations and headers of files being read.

        Raises:
            ModelError: naming what is missing, damaged, or of another kind.
        """

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings [B, L, C] in fp32, padded to the text tower's full length."""

    def _encode_whole(self, frames: Tensor) -> Posterior:
        """Posterior of clips [B, F, 3, H, W] in [0, 1], by a causal VAE that takes whole ones of the sizes it makes."""
        self.latent_shape(frames.shape[1], *frames.shape[-2:])
        pixels = frames.transpose(1, 2).to(self.device, torch.float32) * 2 - 1
        latents = self._vae.encode(pixels).latent_dist
        return self.posterior(latents.mean, latents.logvar)

    @abstractmethod
    def encode_frames(self, frames: Tensor) -> Posterior:
        """Posterior of clips [B, F, 3, H, W] with pixels in [0, 1]; fp32, on the model's device."""

    @property
    @abstractmethod
    def normaliser(self) -> Normaliser:
        """The way from the VAE's numbers to the denoiser's latents and back; needs the VAE."""

    def posterior(self, mean: Tensor, logvar: Tensor) -> Posterior:
        """The posterior that stored `mean` and `logvar`, both [B, C, F, h, w] in the VAE's units, came from."""
        return Posterior(mean, logvar, self.normaliser)

    @abstractmethod
    def decode_frames(self, latents: Tensor, indices: Tensor | None = None, *, context: int | None = None) -> Tensor:
        """Pixels [B, S, 3, H, W] of the clips' frames `indices` [B, S], from latents [B, C, f, h, w]; None: all frames.

        Nominally in [0, 1], but not clamped; differentiable. As little is decoded as the family allows.

        A causal decoder looks back: a frame depends on its own latent frame and on the ones before. `context` says how
        many of those before get that frame's gradient; None means all, which is exact. Pixels are the same for any
        context, and so is the gradient of those that get it. Less context needs less memory. A family whose decoder
        knows no time ignores it.
        """

    def decode_apart(
        self, latents: Tensor, indices: Tensor, *, context: int | None = None
    ) -> Iterator[tuple[Where, Tensor]]:
        """The same frames a few at a time: which of `indices` [B, S] they are, and their pixels [n, 3, H, W].

        Each few have a graph of their own. This asks `decode_frames` for one frame of each clip after the other; a
        causal family can do it without running what lies before them again.
        """
        for column, one in enumerate(indices.split(1, dim=1)):
            rows = list(range(len(indices)))
            yield (rows, [column] * len(rows)), self.decode_frames(latents, one, context=context)[:, 0]

    @abstractmethod
    def frames_to_decode(self, indices: Tensor, num_frames: int) -> int:
        """How many frames, summed over the clips, the decoder must run to show frames `indices` [B, S] of clips of
        `num_frames`: what time and memory for `decode_frames` are planned by.

        A decoder that knows no time runs the chosen frames alone. One that looks back runs everything up to the last
        chosen frame of each clip, though it need keep no activations of what `context` leaves out.
        """

    @abstractmethod
    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's prediction [B, C, f, h, w] for latents of that shape at `timestep` ([] or [B]) and prompts
        [B, L, C], in the latents' number format.
        """

    def guided(self, prompt_embeds: Tensor, unconditional: Tensor, scale: float, *, apart: bool = False) -> Predict:
        """The prediction for prompts [B, L, C] with classifier-free guidance away from the empty one [1, L, C].

        A `scale` of 1 is the prediction for the prompts alone, at half the cost.

        Args:
            apart: Ask for each clip and prompt by itself, and again in the backward pass: one's activations at a time.
        """
        if scale != 1:
            prompt_embeds = torch.cat([unconditional.expand_as(prompt_embeds), prompt_embeds])
        prompt_embeds = prompt_embeds.to(self.device)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            if not apart:
                return self.predict(latents, timestep, prompt_embeds)
            each = zip(latents.split(1), prompt_embeds.split(1), strict=True)
            return torch.cat([recompute(self.predict, clip, timestep, prompt) for clip, prompt in each])

        return predict if scale == 1 else guided(predict, scale)

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, f, h, w) of the latents of a clip of so many frames and pixels; needs the VAE, but none of its weights.

        Raises:
            ModelError: the model can't make clips of that size.
        """

    @property
    @abstractmethod
    def prompt_shape(self) -> tuple[int, int]:
        """(L, C) of a prompt's embedding; needs the text tower, but none of its weights."""

    @property
    @abstractmethod
    def prompt_width(self) -> int:
        """C of the embeddings that the denoiser takes; needs the denoiser, but none of its weights."""

    @abstractmethod
    def enable_checkpointing(self) -> None:
        """Recompute the activations of the denoiser's and the VAE decoder's blocks in the backward pass."""

    def compile_blocks(self) -> None:
        """Have the denoiser's blocks compiled (torch.compile) when they run first; before `enable_checkpointing`.

        Raises:
            ModelError: the family does not offer it.
        """
        raise ModelError(f"model.compile 'blocks': {type(self).__name__} does not offer it; allowed: 'none'")

    def cached(self, threshold: float) -> AbstractContextManager[None]:
        """Within this context, that of one chain of steps without a gradient, the denoiser may leave out blocks that
        would say about what they said before; the lower the threshold, the fewer.

        Raises:
            ModelError: the family does not offer it.
        """
        raise ModelError(f"editing.rollout_cache {threshold}: {type(self).__name__} does not offer it; allowed: null")

    def to(self, device: torch.device | str, parts: Sequence[Part] = PARTS) -> Self:
        """Move those of `parts` that are loaded, and note the `device`; number formats stay as they are."""
        for module in self._modules(parts):
            module.to(device)
        self.device = torch.device(device)
        return self

    @classmethod
    def original_name(cls, layer: str) -> str:
        """What a layer of the denoiser is called in the family's own code, and so in ComfyUI and in kohya's scripts.

        Raises:
            ModelError: it has no name there.
        """
        mend = "kohya's, which ComfyUI reads too" if cls.component == "unet" else "those of diffusers"
        raise ModelError(f"{cls.__name__} has no names of ComfyUI's; export it with {mend}")

    @staticmethod
    def _need(part: T | None, name: Part) -> T:
        if part is None:
            raise ModelError(f"the model was loaded without its {name!r} part; add {name!r} to load_model's parts")
        return part
