"""Which tensor of a reference file is which tensor of a diffusers or transformers model.

VGen (InstructVideo's release) keeps its UNet, Stable Diffusion's VAE and OpenCLIP's text tower in layouts of their own.
The tables here are one to one, so the same ones serve reading and writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "transformer_in": "input_blocks.0.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SLOTS = {"resnets": 0, "temp_convs": 0, "attentions": 1, "temp_attentions": 2}
LORA = {"lora_A": "down_linear", "lora_B": "up_linear"}

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

TEXT_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours lies in a reference file."""

    name: str
    axes: int = 0
    """Axes of length 1 that the file's tensor ends with: a 1x1 convolution where we have a linear layer."""
    third: int | None = None
    """Set where the file keeps query, key and value as one tensor: which third of it is ours."""

    def shape(self, ours: torch.Size) -> list[int]:
        """The file's shape for a tensor of ours."""
        rows, *rest = ours
        return [rows if self.third is None else 3 * rows, *rest, *[1] * self.axes]

    def read(self, file: Mapping[str, Tensor]) -> Tensor:
        """Our tensor out of the file's."""
        tensor = file[self.name]
        if self.third is not None:
            return tensor.chunk(3)[self.third].clone()
        return tensor.reshape(tensor.shape[: tensor.ndim - self.axes])


def expected(ours: Mapping[str, Tensor], sources: Mapping[str, Source]) -> dict[str, Tensor]:
    """What a file must hold for the tensors `ours`: names and shapes, without data."""
    return {source.name: torch.empty(source.shape(ours[name].shape), device="meta") for name, source in sources.items()}


def unet_sources(unet: Any) -> dict[str, Source]:
    """Sources of each tensor of a diffusers UNet3DConditionModel in VGen's UNetSD_LoRA."""
    return {name: Source(unet_name(name, unet.config), _is_conv1d(name)) for name in unet.state_dict()}


def unet_name(name: str, config: Any) -> str:
    """VGen's name of a tensor of UNet3DConditionModel. Blocks of a level follow each other in one flat list there."""
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    match = re.fullmatch(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?([a-z_]+)\.(\d+)\.(.+)", name)
    if match is None:
        raise KeyError(name)
    side, level, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    period = config.layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * period}.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        slot = 3 if config.up_block_types[level].startswith("CrossAttn") else 1
        return f"output_blocks.{level * period + period - 1}.{slot}.{rest}"
    if kind == "resnets":
        part, _, leaf = rest.rpartition(".")
        rest = f"{RESNET[part]}.{leaf}"
    elif kind == "temp_convs":
        rest = f"temopral_conv.{rest}"  # sic
    if side == "mid_block":
        return f"middle_block.{SLOTS[kind] + 3 * layer}.{rest}"
    place = (
        f"input_blocks.{1 + level * period + layer}"
        if side == "down_blocks"
        else f"output_blocks.{level * period + layer}"
    )
    return f"{place}.{SLOTS[kind]}.{rest}"


def lora_name(module: str, matrix: str, config: Any) -> str:
    """VGen's name of the matrix `lora_A` or `lora_B` of a layer such as `….attn1.to_q` or `….attn1.to_out.0`."""
    theirs = unet_name(f"{module}.weight", config).removesuffix(".weight").replace(".to_out.0", ".to_out")
    return f"{theirs}_lora.{LORA[matrix]}.weight"


def _is_conv1d(name: str) -> int:
    temporal = name.startswith("transformer_in.") or ".temp_attentions." in name
    return int(temporal and name.endswith((".proj_in.weight", ".proj_out.weight")))


def vae_sources(vae: Any) -> dict[str, Source]:
    """Sources of each tensor of a diffusers AutoencoderKL in a Stable Diffusion checkpoint (`first_stage_model.*`)."""
    top = len(vae.config.block_out_channels) - 1
    return {
        name: Source(
            "first_stage_model." + vae_name(name, top),
            2 if ".attentions." in name and name.endswith(".weight") and ".group_norm." not in name else 0,
        )
        for name in vae.state_dict()
    }


def vae_name(name: str, top: int) -> str:
    """Latent diffusion's name of a tensor of AutoencoderKL; its decoder counts levels from fine (0) to coarse."""
    if ".attentions." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{top - int(match[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    for ours, theirs in {
        "down_blocks.": "down.",
        "mid_block.attentions.0": "mid.attn_1",
        "resnets.": "block.",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }.items():
        name = name.replace(ours, theirs)
    return name


def text_sources(names: Iterable[str]) -> dict[str, Source]:
    """Sources of each tensor of a transformers CLIPTextModel in an OpenCLIP model."""
    return {name: text_source(name) for name in names}


def text_source(name: str) -> Source:
    """OpenCLIP's place of a tensor of CLIPTextModel."""
    if name in TEXT_ENDS:
        return Source(TEXT_ENDS[name])
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        raise KeyError(name)
    layer, part, leaf = f"transformer.resblocks.{match[1]}", match[2], match[3]
    if part in TEXT_LAYER:
        return Source(f"{layer}.{TEXT_LAYER[part]}.{leaf}")
    third = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(part)
    return Source(f"{layer}.attn.in_proj_{leaf}", third=third)
