"""What a denoiser's layers are called in other programs' files of LoRA, which are written and read by these names.

A name and the matrix's make a key: `<name>.lora_A.weight` [rank, in] and `<name>.lora_B.weight` [out, rank]. kohya's
scripts say `lora_down` and `lora_up`, beside `<name>.alpha` [].
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from rayvideo.models.base import ModelError, VideoModel

Naming = Callable[[type[VideoModel], str], str]
KOHYAS = {"lora_A": "lora_down", "lora_B": "lora_up"}
SECOND = "_2"
"""What diffusers puts behind the name of a pipeline's second denoiser."""


def diffusers(family: type[VideoModel], layer: str) -> str:
    """`transformer.blocks.3.attn1.to_q`, `unet.conv_in`: the denoiser's name in the pipeline, and the layer's."""
    return f"{family.component}.{layer}"


def second(family: type[VideoModel], layer: str) -> str:
    """`transformer_2.blocks.3.attn1.to_q`: the same in a pipeline's second denoiser, of two experts the low one."""
    return f"{family.component}{SECOND}.{layer}"


def comfyui(family: type[VideoModel], layer: str) -> str:
    """`diffusion_model.blocks.3.self_attn.q`: the layer's name in the family's own code.

    Raises:
        ModelError: it has none.
    """
    return f"diffusion_model.{family.original_name(layer)}"


def kohya(family: type[VideoModel], layer: str) -> str:
    """`lora_unet_blocks_3_self_attn_q`: for UNets the layer's name in diffusers, for others that in their own code.

    Raises:
        ModelError: it has none.
    """
    name = layer if family.component == "unet" else family.original_name(layer)
    return f"lora_unet_{name.replace('.', '_')}"


NAMINGS: tuple[Naming, ...] = (diffusers, comfyui, kohya)


def names(family: type[VideoModel], layer: str) -> list[str]:
    """All names that the layer has."""
    found = []
    for naming in NAMINGS:
        with suppress(ModelError):
            found.append(naming(family, layer))
    return found
