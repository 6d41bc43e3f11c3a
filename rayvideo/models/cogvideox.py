"""CogVideoX's text-to-video family (CogVideoXPipeline, 2B and 5B): a transformer on latents of a causal VAE.

The VAE decodes latent frames in pieces of two, handing on what its causal layers kept of the piece before. Its norms
take a whole piece together, so that pieces have to be cut where the VAE itself cuts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

# What the pipeline makes its positions with; diffusers offers neither under a public name.
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer
from typing_extensions import Self

from rayvideo.editing import recompute
from rayvideo.models.base import ModelError, Part, VideoModel, nearest
from rayvideo.models.caching import first_block_cache
from rayvideo.models.files import load_network, load_part, load_tokenizer
from rayvideo.models.posterior import Normaliser, Posterior
from rayvideo.schedules import Diffusion

TEXT_LENGTH = 226
"""Tokens of a prompt. Neither T5 nor the denoiser gets a mask, so that another number of them is another input."""
SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
"""Solvers that CogVideoX comes with: they have the same noise levels, and the chain takes DDIM's steps on them."""


class Piece(NamedTuple):
    """Latent frames that the VAE decodes together, and the pixel frames that come of them."""

    latents: range
    frames: range


class CogVideoX(VideoModel):
    """CogVideoX-2B and -5B, text to video. CogVideoX 1.5 is refused: see `load`."""

    component = "transformer"
    denoisers = ("CogVideoXTransformer3DModel",)

    _vae: AutoencoderKLCogVideoX | None
    _text_encoder: T5EncoderModel | None
    _tokenizer: T5Tokenizer | None

    def __init__(
        self,
        scheduler: CogVideoXDDIMScheduler,
        patch: int,
        *,
        denoiser: CogVideoXTransformer3DModel | None = None,
        vae: AutoencoderKLCogVideoX | None = None,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: T5Tokenizer | None = None,
    ):
        """Freeze the given parts and put them into eval mode.

        Args:
            patch: How many latents in height, and in width, make one token of the denoiser.
        """
        self.scheduler = scheduler
        self.schedule = Diffusion(scheduler, "v_prediction")
        self._patch = patch
        self._hold(denoiser, vae, text_encoder, tokenizer)
        self.dtype = torch.float32 if denoiser is None else denoiser.dtype
        self._layout: Any = None if denoiser is None else denoiser.config

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, parts: Sequence[Part], weights: bool = True) -> Self:
        """Load `parts` from a pipeline folder or hub id; `rayvideo.models.load_model` is the usual way in.

        Raises:
            ModelError: also for CogVideoX 1.5, whose tokens span several latent frames. Its pipeline denoises latent
                frames that are thrown away in the end, and a clip that is edited has none to put there.
        """

        network = partial(load_network, path, weights)
        config = load_part(CogVideoXTransformer3DModel.load_config, path, "transformer")
        if config.get("patch_size_t") is not None:
            raise ModelError(
                f"{path}: transformer/config.json has patch_size_t {config['patch_size_t']}, as CogVideoX 1.5 has; "
                "model.path may be CogVideoX-2B or -5B"
            )
        scheduler = load_schedule(path)
        loaded: dict[str, Any] = {}
        if "denoiser" in parts:
            loaded["denoiser"] = network(CogVideoXTransformer3DModel, "transformer", torch_dtype=dtype)
        if "vae" in parts:
            loaded["vae"] = network(AutoencoderKLCogVideoX, "vae", torch_dtype=torch.float32)
        if "text" in parts:
            loaded["text_encoder"] = network(T5EncoderModel, "text_encoder", dtype=torch.float32)
            loaded["tokenizer"] = load_tokenizer(T5Tokenizer, path)
        return cls(scheduler, config.get("patch_size", 2), **loaded)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, 226, C]: T5's last state for all tokens, padding included, as the pipeline makes them."""
        tower, tokenizer = self._need(self._text_encoder, "text"), self._need(self._tokenizer, "text")
        options = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
        states: Tensor = tower(tokenizer(list(prompts), **options).input_ids.to(self.device))[0]
        return states

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Posterior:
        """Posterior [B, C, f, h, w] of clips [B, 4·(f−1) + 1, 3, H, W] in [0, 1]."""
        return self._encode_whole(frames)

    @property
    def normaliser(self) -> Normaliser:
        """The denoiser's latents are the VAE's numbers times its `scaling_factor`.

        `invert_scale_latents` plays no part: it is for the picture that image-to-video models start from.
        """
        return Normaliser(scale=self._need(self._vae, "vae").config.scaling_factor)

    def decode_frames(self, latents: Tensor, indices: Tensor | None = None, *, context: int | None = None) -> Tensor:
        """Pixels [B, S, 3, H, W] of the chosen frames, clip by clip.

        A piece is run with a gradient if one of its latent frames is a chosen frame's own, or one of the `context`
        before it; so one or two more than asked for may get it. Where windows of several chosen frames touch, they are
        one. Since no piece looks ahead, the gradient within a window is the exact one.
        """
        z = self.normaliser.restore(latents.float())
        if indices is None:
            indices = torch.arange(self._pieces(latents.shape[2])[-1].frames.stop).expand(len(latents), -1)
        pixels = [
            self._decode(clip, frames, context) for clip, frames in zip(z.split(1), indices.tolist(), strict=True)
        ]
        return torch.stack(pixels) * 0.5 + 0.5

    def _decode(self, z: Tensor, frames: list[int], context: int | None) -> Tensor:
        """Pixels [S, 3, H, W] in about [-1, 1] of a clip's frames, from latents [1, C, f, h, w] in the VAE's units."""
        vae = self._need(self._vae, "vae")
        own = {-(-frame // self._stride) for frame in frames}
        cache: Any = None
        shown: dict[int, Tensor] = {}
        for piece in _until(max(frames), self._pieces(z.shape[2])):
            first, end = piece.latents.start, piece.latents.stop
            live = context is None or any(first <= latent < end + context for latent in own)
            with torch.set_grad_enabled(live and torch.is_grad_enabled()):
                out, cache = vae.decoder(z[:, :, first:end], conv_cache=cache)
            shown |= {frame: out[0, :, frame - piece.frames.start] for frame in frames if frame in piece.frames}
        return torch.stack([shown[frame] for frame in frames])

    def frames_to_decode(self, indices: Tensor, num_frames: int) -> int:
        """All frames up to the last chosen one's piece, of each clip."""
        pieces = self._pieces((num_frames - 1) // self._stride + 1)
        return sum(list(_until(int(last), pieces))[-1].frames.stop for last in indices.amax(dim=1))

    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predicted velocity v = √ᾱ·ε − √(1−ᾱ)·x, in the latents' number format whatever the denoiser's."""
        v: Tensor = self.denoiser(
            latents.to(self.dtype).transpose(1, 2),
            prompt_embeds.to(self.dtype),
            timestep.expand(len(latents)),
            image_rotary_emb=self._positions(latents) if self._layout.use_rotary_positional_embeddings else None,
            return_dict=False,
        )[0]
        return v.transpose(1, 2).to(latents.dtype)

    def _positions(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, both [tokens, head width], that turn queries and keys by where a token lies.

        Positions span the picture that the model was trained on, so that other sizes are stretched onto it.
        """
        config, (frames, height, width) = self._layout, latents.shape[2:]
        grid = height // self._patch, width // self._patch
        trained = config.sample_width // self._patch, config.sample_height // self._patch
        corners = get_resize_crop_region_for_grid(grid, *trained)
        turns: tuple[Tensor, Tensor] = get_3d_rotary_pos_embed(
            config.attention_head_dim, corners, grid, frames, device=latents.device
        )
        return turns

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """(226, C) of a prompt's embedding."""
        return TEXT_LENGTH, self._need(self._text_encoder, "text").config.d_model

    @property
    def prompt_width(self) -> int:
        """C of the embeddings that the denoiser takes."""
        return int(self._need(self._layout, "denoiser").text_embed_dim)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, (F−1)/4 + 1, H/8, W/8).

        Raises:
            ModelError: frames are not 8n+1, or sizes no multiples of what a token of the denoiser covers. Other numbers
                4n+1 make an even number of latent frames. The VAE has no piece for a single first frame then, and gives
                back three frames too many.
        """
        vae: Any = self._need(self._vae, "vae")
        config, factor = vae.config, 2 ** (len(vae.config.block_out_channels) - 1)
        every, tile = self._stride * vae.num_latent_frames_batch_size, factor * self._patch
        _refuse_other("data.frames", frames, every, 1, f"{every}n+1 frames")
        _refuse_other("data.height", height, tile, 0, f"multiples of {tile}")
        _refuse_other("data.width", width, tile, 0, f"multiples of {tile}")
        return config.latent_channels, (frames - 1) // self._stride + 1, height // factor, width // factor

    def compile_blocks(self) -> None:
        """All blocks of the transformer are alike: one compilation serves them."""
        for transformer in self._transformers():
            transformer.compile_repeated_blocks()

    def cached(self, threshold: float) -> AbstractContextManager[None]:
        """diffusers' First Block Cache."""
        return first_block_cache(self._transformers(), threshold)

    def enable_checkpointing(self) -> None:
        """Recompute the blocks of the denoiser and, if it is loaded, of the VAE's decoder."""
        for transformer in self._transformers():
            transformer.enable_gradient_checkpointing(recompute)
        if self._vae is not None:
            self._vae.enable_gradient_checkpointing(recompute)

    def _transformers(self) -> list[Any]:
        """The denoiser; also inside an adapter."""
        return [module for module in self.denoiser.modules() if isinstance(module, CogVideoXTransformer3DModel)]

    @property
    def _stride(self) -> int:
        """By how much the VAE compresses time."""
        return int(self._need(self._vae, "vae").config.temporal_compression_ratio)

    def _pieces(self, count: int) -> list[Piece]:
        """How the VAE decodes `count` latent frames, an odd number: the first piece takes the one that is left over."""
        size = self._need(self._vae, "vae").num_latent_frames_batch_size
        if count % size != 1:
            raise ModelError(f"{count} latent frames; CogVideoX's VAE decodes {size}n+1 of them")
        starts = [0, *range(size + 1, count, size)]
        frames = [0, *(self._stride * (start - 1) + 1 for start in starts[1:]), self._stride * (count - 1) + 1]
        return [
            Piece(range(first, end), range(*frames[number : number + 2]))
            for number, (first, end) in enumerate(zip(starts, [*starts[1:], count], strict=True))
        ]


def _until(frame: int, pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The pieces that must be run to see a frame."""
    return (piece for piece in pieces if piece.frames.start <= frame)


def _refuse_other(key: str, value: int, step: int, first: int, allowed: str) -> None:
    """Raise `ModelError`, with the nearest numbers, unless `value` is `first` and some times `step`."""
    if near := nearest(value, step, first):
        raise ModelError(f"{key} {value}: CogVideoX makes {allowed}; the nearest are {near}")


def load_schedule(path: str | Path) -> CogVideoXDDIMScheduler:
    """The noise levels of a pipeline folder or hub id, on a grid that starts at pure noise.

    The file's `timestep_spacing` is not followed: with any but "trailing" the last step starts at t = 0, where next to
    no noise is left, so that it would do nothing and carry no gradient. Of a number of steps that does not divide 1000
    our steps end where the next one starts; diffusers' own end beside it (its pull request 13125).

    Raises:
        ModelError: naming its class or its prediction, if it is not one that can be read as DDIM on v.
    """
    written = load_part(CogVideoXDDIMScheduler.load_config, path, "scheduler")
    if (kind := written.get("_class_name")) not in SCHEDULERS:
        raise ModelError(f"{path}: its scheduler is a {kind}; allowed are {' and '.join(SCHEDULERS)}")
    if (predicts := written.get("prediction_type", "epsilon")) != "v_prediction":
        raise ModelError(
            f"{path}: scheduler/scheduler_config.json has prediction_type {predicts!r}; allowed is 'v_prediction'"
        )
    scheduler = load_part(CogVideoXDDIMScheduler.from_pretrained, path, "scheduler", timestep_spacing="trailing")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.float()  # as all other schedulers count
    return scheduler
