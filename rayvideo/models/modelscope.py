"""ModelScope's text-to-video family (TextToVideoSDPipeline): a 3D UNet on per-frame Stable Diffusion latents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from typing_extensions import Self

from rayvideo.editing import recompute
from rayvideo.models.base import ModelError, Part, VideoModel
from rayvideo.models.files import load_network, load_part
from rayvideo.models.posterior import Normaliser, Posterior
from rayvideo.schedules import Diffusion

BLOCKS = ("resnets", "temp_convs", "attentions", "temp_attentions")
"""What the stages of diffusers' UNet3DConditionModel call their blocks; not every stage has attentions."""


class ModelScope(VideoModel):
    """ModelScopeT2V, Zeroscope and every model in the same format."""

    denoisers = ("UNet3DConditionModel",)

    _vae: AutoencoderKL | None
    _text_encoder: CLIPTextModel | None
    _tokenizer: CLIPTokenizer | None

    def __init__(
        self,
        scheduler: DDIMScheduler,
        *,
        denoiser: UNet3DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ):
        """Freeze the given parts and put them into eval mode, where dropout is off."""
        self.scheduler = scheduler
        self.schedule = Diffusion(scheduler)
        self._hold(denoiser, vae, text_encoder, tokenizer)
        self.dtype = torch.float32 if denoiser is None else denoiser.dtype

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, parts: Sequence[Part], weights: bool = True) -> Self:
        """Load `parts` from a pipeline folder or hub id; `rayvideo.models.load_model` is the usual way in."""

        network = partial(load_network, path, weights)
        loaded: dict[str, Any] = {}
        if "denoiser" in parts:
            loaded["denoiser"] = network(UNet3DConditionModel, "unet", torch_dtype=dtype)
        if "vae" in parts:
            loaded["vae"] = network(AutoencoderKL, "vae", torch_dtype=torch.float32)
        if "text" in parts:
            loaded["text_encoder"] = network(CLIPTextModel, "text_encoder", dtype=torch.float32)
            loaded["tokenizer"] = load_part(CLIPTokenizer.from_pretrained, path, "tokenizer")
        return cls(load_schedule(path), **loaded)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, L, C]: the text tower's last state for all L tokens, as the diffusers pipeline makes them."""
        tower, tokenizer = self._need(self._text_encoder, "text"), self._need(self._tokenizer, "text")
        length = tower.config.max_position_embeddings
        tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return tower(tokens.input_ids.to(self.device))[0]

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Posterior:
        """Posterior of clips [B, F, 3, H, W] in [0, 1], frame by frame."""
        batch = frames.shape[:2]
        pixels = frames.flatten(0, 1).to(self.device, torch.float32) * 2 - 1
        latents = self._need(self._vae, "vae").encode(pixels).latent_dist
        mean, logvar = (x.unflatten(0, batch).transpose(1, 2).contiguous() for x in (latents.mean, latents.logvar))
        return self.posterior(mean, logvar)

    @property
    def normaliser(self) -> Normaliser:
        """Stable Diffusion's latents are the VAE's numbers times its `scaling_factor`."""
        return Normaliser(scale=self._need(self._vae, "vae").config.scaling_factor)

    def decode_frames(self, latents: Tensor, indices: Tensor | None = None, *, context: int | None = None) -> Tensor:
        """Pixels [B, S, 3, H, W] of the chosen frames; the VAE knows no time, so neither the others nor `context` play
        a part.
        """
        vae = self._need(self._vae, "vae")
        frames = latents.transpose(1, 2)
        if indices is not None:
            indices = indices.to(frames.device)
            frames = frames[torch.arange(len(frames), device=frames.device)[:, None], indices]
        pixels = vae.decode(self.normaliser.restore(frames.flatten(0, 1).to(vae.dtype))).sample
        return pixels.unflatten(0, frames.shape[:2]) * 0.5 + 0.5

    def frames_to_decode(self, indices: Tensor, num_frames: int) -> int:
        """As many as are chosen."""
        return indices.numel()

    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predicted noise, in the latents' number format whatever the denoiser's."""
        noise = self.denoiser(latents.to(self.dtype), timestep, prompt_embeds.to(self.dtype), return_dict=False)[0]
        return noise.to(latents.dtype)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """(L, C) of a prompt's embedding."""
        config = self._need(self._text_encoder, "text").config
        return config.max_position_embeddings, config.hidden_size

    @property
    def prompt_width(self) -> int:
        """C of the embeddings that the denoiser takes."""
        config: Any = self._need(self._denoiser, "denoiser").config
        return int(config.cross_attention_dim)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(4, F, H/8, W/8) for Stable Diffusion's VAE."""
        config = self._need(self._vae, "vae").config
        factor = 2 ** (len(config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise ModelError(
                f"data.height, data.width: frames of {height}x{width} pixels; both must be multiples of {factor}"
            )
        return config.latent_channels, frames, height // factor, width // factor

    def compile_blocks(self) -> None:
        """Blocks of different widths are compiled one by one, so that the first step takes long."""
        for block in blocks(self.denoiser):
            block.forward = torch.compile(block.forward)

    def enable_checkpointing(self) -> None:
        """Recompute the blocks of the denoiser and, if it is loaded, of the VAE's decoder."""
        enable_checkpointing(self.denoiser)
        if self._vae is not None:
            self._vae.enable_gradient_checkpointing()


def enable_checkpointing(unet: nn.Module) -> None:
    """Gradient checkpointing for the 3D UNet, which diffusers does not offer for it: each block keeps only its inputs
    and runs again in the backward pass. Outputs and gradients stay the same, bit for bit.
    """
    for block in blocks(unet):
        block.forward = partial(recompute, block.forward)


def blocks(unet: Any) -> list[nn.Module]:
    """The blocks of a UNet3DConditionModel, or of an adapter around it; none of them holds another."""
    stages = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [unet.transformer_in, *(block for stage in stages for kind in BLOCKS for block in getattr(stage, kind, ()))]


def load_schedule(path: str | Path) -> DDIMScheduler:
    """The noise schedule of a pipeline folder or hub id, which must be written as a DDIMScheduler that predicts noise.

    The chain takes DDIM's steps. Other scheduler classes are other solvers. Some have the same noise levels, but
    whether a model's may be read as DDIM's depends on how it was trained, which no file says (docs/checkpoints.md).

    Raises:
        ModelError: naming its class, or the settings that the chain does not follow.
    """
    written = load_part(_written, path, "scheduler")
    kind = written.get("_class_name", DDIMScheduler.__name__)
    if kind != DDIMScheduler.__name__:
        raise ModelError(
            f"{path}: its scheduler is a {kind}; allowed is a DDIMScheduler. docs/checkpoints.md says for which models "
            "it can be written as one, and how"
        )
    scheduler = load_part(DDIMScheduler.from_pretrained, path, "scheduler")
    wrong = [
        f"{key}={scheduler.config[key]!r}" + ("" if key in written else " (DDIMScheduler's default: it is not set)")
        for key, allowed in {"prediction_type": "epsilon", "clip_sample": False, "thresholding": False}.items()
        if scheduler.config[key] != allowed
    ]
    if wrong:
        raise ModelError(
            f"{path}: the schedule must predict epsilon and neither clip nor threshold samples, but "
            f"scheduler/scheduler_config.json has {', '.join(wrong)}"
        )
    return scheduler


def _written(path: str | Path, subfolder: str) -> dict[str, Any]:
    """A scheduler's configuration as it stands in the file, without the defaults of a class."""
    return dict(DDIMScheduler.load_config(path, subfolder=subfolder))
