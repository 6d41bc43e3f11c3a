"""ModelScope's text-to-video family (TextToVideoSDPipeline): a 3D UNet on per-frame Stable Diffusion latents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar
from typing_extensions import Self

from rayvideo.models.base import ModelError, Part, Posterior, VideoModel

disable_progress_bar()  # one for each file that is read, in every process and in every log

RECOMPUTED = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)


class ModelScope(VideoModel):
    """ModelScopeT2V, Zeroscope and every model in the same format."""

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
        self._denoiser = denoiser
        self._vae = vae
        self._text_encoder = text_encoder
        self._tokenizer = tokenizer
        for part in self._modules():
            part.requires_grad_(False).eval()
        self.device = torch.device("cpu")
        self.dtype = torch.float32 if denoiser is None else denoiser.dtype

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, parts: Sequence[Part]) -> Self:
        """Load `parts` from a pipeline folder or hub id; `rayvideo.models.load_model` is the usual way in."""
        loaded: dict[str, Any] = {}
        if "denoiser" in parts:
            loaded["denoiser"] = load_weights(UNet3DConditionModel, path, "unet", torch_dtype=dtype)
        if "vae" in parts:
            loaded["vae"] = load_weights(AutoencoderKL, path, "vae", torch_dtype=torch.float32)
        if "text" in parts:
            loaded["text_encoder"] = load_weights(CLIPTextModel, path, "text_encoder", dtype=torch.float32)
            loaded["tokenizer"] = _load(CLIPTokenizer, path, "tokenizer")
        scheduler = _load(DDIMScheduler, path, "scheduler")
        settings = scheduler.config
        if settings.prediction_type != "epsilon" or settings.clip_sample or settings.thresholding:
            raise ModelError(
                f"{path}: the schedule must predict epsilon and neither clip nor threshold samples, but has "
                f"prediction_type={settings.prediction_type!r}, clip_sample={settings.clip_sample}, "
                f"thresholding={settings.thresholding}"
            )
        return cls(scheduler, **loaded)

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

    def posterior(self, mean: Tensor, logvar: Tensor) -> Posterior:
        """The posterior that stored `mean` and `logvar` came from."""
        return Posterior(mean, logvar, self._need(self._vae, "vae").config.scaling_factor)

    def decode_frames(self, latents: Tensor, indices: Tensor | None = None) -> Tensor:
        """Pixels [B, S, 3, H, W] of the chosen frames; the VAE knows no time, so the others cost nothing."""
        vae = self._need(self._vae, "vae")
        frames = latents.transpose(1, 2)
        if indices is not None:
            indices = indices.to(frames.device)
            frames = frames[torch.arange(len(frames), device=frames.device)[:, None], indices]
        pixels = vae.decode(frames.flatten(0, 1).to(vae.dtype) / vae.config.scaling_factor).sample
        return pixels.unflatten(0, frames.shape[:2]) * 0.5 + 0.5

    def predict(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predicted noise, in the latents' number format whatever the denoiser's."""
        noise = self.denoiser(latents.to(self.dtype), timestep, prompt_embeds.to(self.dtype), return_dict=False)[0]
        return noise.to(latents.dtype)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(4, F, H/8, W/8) for Stable Diffusion's VAE."""
        config = self._need(self._vae, "vae").config
        factor = 2 ** (len(config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise ModelError(f"frames of {height}x{width} pixels: height and width must be multiples of {factor}")
        return config.latent_channels, frames, height // factor, width // factor

    def enable_checkpointing(self) -> None:
        """Recompute the blocks of the denoiser and, if it is loaded, of the VAE's decoder."""
        enable_checkpointing(self.denoiser)
        if self._vae is not None:
            self._vae.enable_gradient_checkpointing()

    def to(self, device: torch.device | str) -> Self:
        """Move every loaded part."""
        for part in self._modules():
            part.to(device)
        self.device = torch.device(device)
        return self

    def _modules(self) -> list[nn.Module]:
        return [part for part in (self._denoiser, self._vae, self._text_encoder) if part is not None]


def enable_checkpointing(unet: nn.Module) -> None:
    """Gradient checkpointing for the 3D UNet, which diffusers lacks: each residual, temporal convolution and attention
    block keeps its inputs only and runs again in the backward pass. Outputs and gradients stay the same, bit for bit.
    """
    for module in unet.modules():
        if isinstance(module, RECOMPUTED):
            # ZeRO-3 shows partitioned weights to the determinism check, which would refuse them.
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, determinism_check="none")


def _load(kind: Any, path: str | Path, part: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, subfolder=part, **options)
    except Exception as error:  # what the libraries make of a damaged configuration may be anything
        raise ModelError(f"{path}: {part!r} can't be loaded: {error}") from error


def load_weights(kind: Any, path: str | Path, part: str, **options: Any) -> Any:
    """A part's network from a pipeline folder or hub id.

    A tensor that the files lack is an error; the libraries would fill it with random numbers.
    """
    module, report = _load(kind, path, part, output_loading_info=True, **options)
    if absent := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ModelError(f"{path}: {part!r} lacks or misfits {len(absent)} tensors, such as {absent[0]}")
    return module
