"""The family's class: what `VideoModel` asks for, on diffusers' and transformers' networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer, UMT5EncoderModel
from typing_extensions import Self

from rayvideo.editing import recompute
from rayvideo.models.base import ModelError, Part, VideoModel, nearest
from rayvideo.models.caching import first_block_cache
from rayvideo.models.decoding import Where
from rayvideo.models.experts import Experts, Unloaded
from rayvideo.models.files import load_network, load_part, load_tokenizer
from rayvideo.models.index import read_index
from rayvideo.models.posterior import Normaliser, Posterior
from rayvideo.models.wan.decoder import WindowedDecoder, spatial_factor, stride
from rayvideo.models.wan.names import original_name
from rayvideo.schedules.flow import Flow

TEXT_LENGTH = 512
"""Rows of an embedding as the denoiser was trained on: the text's tokens, then zeros. It gets no mask, so that another
number of zero rows is another input."""


class Wan(VideoModel):
    """Wan 2.1 and 2.2, text to video; of Wan 2.2 T2V-A14B both experts."""

    component = "transformer"
    denoisers = ("WanTransformer3DModel",)

    _vae: AutoencoderKLWan | None
    _text_encoder: UMT5EncoderModel | None

    def __init__(
        self,
        scheduler: Any,
        patch: Sequence[int],
        *,
        denoiser: WanTransformer3DModel | Experts | None = None,
        vae: AutoencoderKLWan | None = None,
        text_encoder: UMT5EncoderModel | None = None,
        tokenizer: Any = None,
    ):
        """Freeze the given parts and put them into eval mode.

        Args:
            patch: How many latents in time, height and width make one token of the denoiser.
        """
        self.scheduler = scheduler
        self.schedule = Flow(scheduler)
        self._patch = patch
        self._hold(denoiser, vae, text_encoder, tokenizer)
        self._decoder = None if vae is None else WindowedDecoder(vae)
        transformers = self._transformers()
        self.dtype = transformers[0].dtype if transformers else torch.float32

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, parts: Sequence[Part], weights: bool = True) -> Self:
        """Load `parts` from a pipeline folder or hub id; `rayvideo.models.load_model` is the usual way in.

        Raises:
            ModelError: also for fp16, whose range these models' numbers leave, and for one expert of two.
        """
        if dtype is torch.float16:
            raise ModelError("training.precision 'fp16': Wan's activations leave its range; allowed: 'bf16', 'fp32'")

        network = partial(load_network, path, weights)

        def transformer(part: str) -> Any:
            # Some layers are kept in fp32 by `torch_dtype`. Never call .to(dtype) on it, which would cast them too.
            return network(WanTransformer3DModel, part, torch_dtype=dtype)

        scheduler = load_scheduler(path)
        boundary = _boundary(path)
        loaded: dict[str, Any] = {}
        if boundary is None and "denoiser" in parts:
            loaded["denoiser"] = transformer("transformer")
        elif boundary is not None and {"denoiser", "low"} & set(parts):
            high = transformer("transformer") if "denoiser" in parts else Unloaded()
            timesteps = scheduler.config.num_train_timesteps
            loaded["denoiser"] = Experts(high, transformer("transformer_2"), boundary * timesteps)
        if "vae" in parts:
            loaded["vae"] = network(AutoencoderKLWan, "vae", torch_dtype=torch.float32)
        if "text" in parts:
            loaded["text_encoder"] = network(UMT5EncoderModel, "text_encoder", dtype=torch.float32)
            loaded["tokenizer"] = load_tokenizer(AutoTokenizer, path)
        patch = load_part(WanTransformer3DModel.load_config, path, "transformer")["patch_size"]
        return cls(scheduler, patch, **loaded)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, 512, C]: the text tower's last state of a prompt's tokens, then rows of zeros."""
        tower, tokenizer = self._need(self._text_encoder, "text"), self._need(self._tokenizer, "text")
        tokens = tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        states: Tensor = tower(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states.masked_fill(tokens.attention_mask[..., None] == 0, 0)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Posterior:
        """Posterior [B, C, f, h, w] of clips [B, 4·(f−1) + 1, 3, H, W] in [0, 1]."""
        return self._encode_whole(frames)

    @property
    def normaliser(self) -> Normaliser:
        """(z − mean) / std with each channel's own, as the VAE's configuration has them."""
        config = self._need(self._vae, "vae").config
        return Normaliser(shift=torch.tensor(config.latents_mean), scale=1 / torch.tensor(config.latents_std))

    def decode_frames(self, latents: Tensor, indices: Tensor | None = None, *, context: int | None = None) -> Tensor:
        """Pixels [B, S, 3, H, W] of the chosen frames, clip by clip; see `WindowedDecoder.decode` for `context`."""
        decoder = self._need(self._decoder, "vae")
        clips = self.normaliser.restore(latents.float()).split(1)
        chosen = [None] * len(clips) if indices is None else indices.tolist()
        pixels = [decoder.decode(clip, frames, context) for clip, frames in zip(clips, chosen, strict=True)]
        return torch.stack(pixels) * 0.5 + 0.5

    def decode_apart(
        self, latents: Tensor, indices: Tensor, *, context: int | None = None
    ) -> Iterator[tuple[Where, Tensor]]:
        """The chosen frames clip by clip and chunk by chunk; what lies before a chunk's window is run once."""
        decoder = self._need(self._decoder, "vae")
        for row, frames in enumerate(indices.tolist()):
            clip = partial(self.normaliser.restore, latents[row : row + 1].float())
            for columns, pixels in decoder.apart(clip, frames, context):
                yield ([row] * len(columns), columns), pixels * 0.5 + 0.5

    def frames_to_decode(self, indices: Tensor, num_frames: int) -> int:
        """All frames up to the last chosen one's chunk, of each clip."""
        decoder = self._need(self._decoder, "vae")
        return sum(decoder.stride * decoder.chunk_of(int(last)) + 1 for last in indices.amax(dim=1))

    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predicted velocity noise − clip, in the latents' number format whatever the denoiser's.

        Timesteps are fractions of the flow, from 0 to 1000, and no integers. All clips of a batch may have their own
        [B]; TI2V-5B could take one for each token, which text to video does not need.
        """
        text = pad(prompt_embeds, (0, 0, 0, TEXT_LENGTH - prompt_embeds.shape[1])).to(self.dtype)
        times = timestep.to(latents.device).expand(len(latents))
        velocity: Tensor = self.denoiser(latents.to(self.dtype), times, text, return_dict=False)[0]
        return velocity.to(latents.dtype)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """(512, C) of a prompt's embedding."""
        return TEXT_LENGTH, self._need(self._text_encoder, "text").config.d_model

    @property
    def prompt_width(self) -> int:
        """C of the embeddings that the denoiser takes."""
        self._need(self._denoiser, "denoiser")
        return int(self._transformers()[0].config.text_dim)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, (F−1)/4 + 1, H/8, W/8), for TI2V-5B H/16 and W/16.

        Raises:
            ModelError: frames are not 4n+1, or sizes no multiples of what a token of the denoiser covers.
        """
        vae = self._need(self._vae, "vae")
        every, factor = stride(vae), spatial_factor(vae)
        if near := nearest(frames, every, 1):
            raise ModelError(f"data.frames {frames}: this model makes {every}n+1 frames; the nearest are {near}")
        for key, size, patch in (("height", height, self._patch[1]), ("width", width, self._patch[2])):
            if near := nearest(size, factor * patch):
                raise ModelError(
                    f"data.{key} {size}: this model makes multiples of {factor * patch}; the nearest are {near}"
                )
        return vae.config.z_dim, (frames - 1) // every + 1, height // factor, width // factor

    def compile_blocks(self) -> None:
        """All blocks of a transformer are alike: one compilation serves them."""
        self._need(self._denoiser, "denoiser")
        for transformer in self._transformers():
            transformer.compile_repeated_blocks()

    def cached(self, threshold: float) -> AbstractContextManager[None]:
        """diffusers' First Block Cache."""
        return first_block_cache(self._transformers(), threshold)

    def enable_checkpointing(self) -> None:
        """Recompute the blocks of the denoiser and, if it is loaded, the chunks and blocks of the VAE's decoder."""
        self._need(self._denoiser, "denoiser")
        for transformer in self._transformers():
            transformer.enable_gradient_checkpointing(recompute)
        if self._decoder is not None:
            self._decoder.checkpoint()

    @classmethod
    def original_name(cls, layer: str) -> str:
        """Such as `blocks.0.self_attn.q` for `blocks.0.attn1.to_q`."""
        return original_name(layer)

    def _transformers(self) -> list[Any]:
        """The denoiser, or its experts; also inside an adapter."""
        if self._denoiser is None:
            return []
        return [module for module in self._denoiser.modules() if isinstance(module, WanTransformer3DModel)]


def load_scheduler(path: str | Path) -> Any:
    """The scheduler of a pipeline folder or hub id, of its own class; `Flow` says which ones it can follow.

    Raises:
        ModelError: it can't be loaded, or diffusers has none of that name.
    """
    name = str(load_part(UniPCMultistepScheduler.load_config, path, "scheduler").get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ModelError(f"{path}: 'scheduler' is a {name}, which this diffusers {diffusers.__version__} does not have")
    loader: Any = kind
    return load_part(loader.from_pretrained, path, "scheduler")


def _boundary(path: str | Path) -> float | None:
    """From which share of the timesteps up the first of two experts denoises; None for a model with one denoiser.

    Raises:
        ModelError: model_index.json names two experts without a boundary, or a boundary without the second expert.
    """
    index = read_index(path)
    boundary, second = index.get("boundary_ratio"), index.get("transformer_2")
    named = isinstance(second, list) and second[:1] != [None]
    if boundary is None and not named:
        return None
    if not named:
        raise ModelError(
            f"model.path: {path} has boundary_ratio {boundary} in model_index.json, which takes two experts, but no "
            "'transformer_2'; fetch the whole model, or set boundary_ratio to null for one with one denoiser"
        )
    if not isinstance(boundary, int | float) or not 0 < boundary < 1:
        raise ModelError(
            f"model.path: {path} has 'transformer_2', but boundary_ratio {boundary!r} in model_index.json; allowed: "
            "between 0 and 1, for Wan 2.2 T2V-A14B 0.875"
        )
    return float(boundary)
