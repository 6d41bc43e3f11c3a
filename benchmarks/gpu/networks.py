"""The published architectures with random weights, built on the device from the configurations in configs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, UNet3DConditionModel, WanTransformer3DModel
from torch import nn

from benchmarks.gpu.cases import BF16, Setting, World
from rayvideo.models import VideoModel
from rayvideo.models.modelscope import ModelScope, load_schedule
from rayvideo.models.wan import Wan
from rayvideo.models.wan.family import load_scheduler
from rayvideo.rewards.hpsv2 import HPSv2
from rayvideo.rewards.openclip import build


def build_model(world: World, setting: Setting, configs: Path, device: torch.device) -> VideoModel:
    """Denoiser in bf16 and VAE of a world, ready for an adapter."""
    folder = configs / world.model

    def network(kind: Any, part: str, dtype: torch.dtype) -> Any:
        with device:
            made = kind.from_config(kind.load_config(folder, subfolder=part))
        to_dtype(made, dtype)
        if setting.channels_last:
            to_channels_last(made)
        return made

    model: VideoModel
    if world.model == "modelscope-1.7b":
        denoiser = network(UNet3DConditionModel, "unet", BF16)
        vae = network(AutoencoderKL, "vae", setting.vae)
        model = ModelScope(load_schedule(folder), denoiser=denoiser, vae=vae)
    else:
        denoiser = network(WanTransformer3DModel, "transformer", BF16)
        vae = network(AutoencoderKLWan, "vae", setting.vae)
        model = Wan(load_scheduler(folder), denoiser.config.patch_size, denoiser=denoiser, vae=vae)
    model.dtype = BF16
    if setting.compile:
        denoiser.compile_repeated_blocks()
    if setting.checkpointing in ("blocks", "both"):
        model.enable_checkpointing()
    return model.to(device)


def build_judge(dtype: torch.dtype, configs: Path, device: torch.device) -> HPSv2:
    """HPSv2 with both its towers."""
    with device:
        model, tokenizer = build(configs / "hpsv2" / "open_clip_config.json")
        return HPSv2(model.to(dtype), tokenizer)


def to_dtype(network: Any, dtype: torch.dtype) -> None:
    """All layers but those that diffusers keeps in fp32, as `from_pretrained` with a dtype loads them."""
    kept = network._keep_in_fp32_modules or ()
    for name, layer in network.named_modules():
        if not list(layer.children()) and not any(part in name for part in kept):
            layer.to(dtype)


def to_channels_last(network: nn.Module) -> None:
    """The weights of convolutions, whose outputs then come so too."""
    for layer in network.modules():
        formats = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
        for kind, memory_format in formats.items():
            if isinstance(layer, kind):
                layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)
