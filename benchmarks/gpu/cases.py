"""What is measured: the recipes' steps on three models, and what changes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from rayvideo.sections import Editing, Lora

BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Setting:
    """How a step is made."""

    batch_size: int
    checkpointing: Literal["none", "step", "blocks", "both"] = "blocks"
    decode: Literal["together", "frame_by_frame"] = "together"
    judge: torch.dtype = BF16
    vae: torch.dtype = FP32
    adapter: torch.dtype = FP32
    guidance: Literal["one call", "two calls"] = "one call"
    attention: Literal["flash", "cudnn", "efficient"] | None = None
    """The back end of torch's attention that is asked first; None: torch's own choice."""
    channels_last: bool = False
    """Of all convolutions of denoiser and VAE."""
    autotune: bool = False
    """cuDNN tries its algorithms for each shape."""
    tf32: bool = False
    """For fp32 matrix products, such as the adapter's; convolutions have it anyway."""
    compile: bool = False
    """diffusers' `compile_repeated_blocks`, which its 3D UNet lacks."""

    @property
    def counted(self) -> str:
        """What of it changes the FLOPs of a clip."""
        return f"checkpointing {self.checkpointing}, decode {self.decode}"


@dataclass(frozen=True)
class World:
    """A model, its clips, and its recipe's step."""

    name: str
    model: Literal["modelscope-1.7b", "wan2.1-1.3b"]
    """Folder of its configurations, and file of its recipe."""
    frames: int
    height: int
    width: int
    tokens: int
    """Of a caption."""
    lora: Lora
    editing: Editing
    attenuation_unit: Literal["frame", "clip"]
    usual: Setting
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a case -> the one field of the setting that it changes."""

    def settings(self) -> dict[str, Setting]:
        """Of all cases by name, the usual one first."""
        return {"usual": self.usual, **{name: self.changed([name]) for name in self.changes}}

    def changed(self, names: list[str]) -> Setting:
        """The usual setting with these changes."""
        return replace(self.usual, **{key: value for name in names for key, value in self.changes[name].items()})


CHECKPOINTING: dict[str, dict[str, Any]] = {
    f"checkpointing: {name}": {"checkpointing": name} for name in ("none", "both")
}
ATTENTION: dict[str, dict[str, Any]] = {
    f"attention: {name}": {"attention": name} for name in ("flash", "cudnn", "efficient")
}
OTHER: dict[str, dict[str, Any]] = {
    "guidance in two calls": {"guidance": "two calls"},
    "channels_last": {"channels_last": True},
    "cuDNN autotuned": {"autotune": True},
    "fp32 products in TF32": {"tf32": True},
    "adapter in bf16": {"adapter": BF16},
}

MODELSCOPE = World(
    "ModelScopeT2V, 16x256x256",
    "modelscope-1.7b",
    frames=16,
    height=256,
    width=256,
    tokens=77,
    lora=Lora(),
    editing=Editing(),
    attenuation_unit="frame",
    usual=Setting(batch_size=2),
    changes={
        **CHECKPOINTING,
        **{f"batch of {size}": {"batch_size": size} for size in (1, 4, 8)},
        **OTHER,
        "VAE in bf16": {"vae": BF16},
        "judge in fp32": {"judge": FP32},
        "decode: frame_by_frame": {"decode": "frame_by_frame"},
        **ATTENTION,
    },
)
WAN = World(
    "Wan2.1-1.3B, 33x256x256",
    "wan2.1-1.3b",
    frames=33,
    height=256,
    width=256,
    tokens=512,
    lora=Lora(rank=16, alpha=16.0),
    editing=Editing(start_sigma=0.658, guidance=5.0),
    attenuation_unit="clip",
    usual=Setting(batch_size=1, decode="frame_by_frame"),
    changes={
        **CHECKPOINTING,
        "batch of 4": {"batch_size": 4},
        **OTHER,
        "decode: together": {"decode": "together"},
        **ATTENTION,
        "blocks compiled": {"compile": True},
    },
)
LARGE = replace(
    WAN,
    name="Wan2.1-1.3B, 81x480x832",
    frames=81,
    height=480,
    width=832,
    changes={
        name: WAN.changes[name]
        for name in (
            "decode: together",
            "attention: cudnn",
            "channels_last",
            "blocks compiled",
            "checkpointing: both",
            "attention: flash",
        )
    },
)
WORLDS = (MODELSCOPE, WAN, LARGE)
