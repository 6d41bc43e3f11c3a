"""The text-to-video model that is tuned, and its adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayvideo.sections.base import FilePath, Positive, Section


class Lora(Section):
    """The trainable adapter (paper §4; the release trains rank 4 on every attention)."""

    rank: Positive = Field(4, description="Rank r of each pair of matrices.")
    alpha: float = Field(4.0, gt=0, description="Scale numerator: the adapter's output is multiplied by alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="Name endings of the layers that get a pair."
    )
    start: FilePath | Annotated[dict[Literal["high", "low"], FilePath], Field(min_length=1)] | None = Field(
        None,
        description="An adapter to begin from: a folder of PEFT's or a .safetensors file as diffusers, ComfyUI and "
        "kohya's scripts write it, which all machines see, or its URI; for a model with two denoisers also "
        "{high: FILE, low: FILE} (docs/checkpoints.md). null: a fresh one, which changes nothing yet.",
    )


class Model(Section):
    """The text-to-video model that is tuned."""

    path: FilePath = Field(description="Folder or hub id in diffusers' format (docs/models.md).")
    family: str | None = Field(
        None,
        description="Your own 'module:Class' that loads and runs the model (docs/models.md); default: by the pipeline "
        "that model_index.json names.",
    )
    shift: float | None = Field(
        None,
        gt=0,
        description="Flow models only: how much of the chain is spent at high noise (docs/flow.md); null: as the "
        "model's scheduler says.",
    )
    negative_prompt: str = Field(
        "", description="What guidance leads away from, in training and in evaluation; clips are prepared for it."
    )
    lora: Lora = Lora()
    train: Literal["low", "high", "both"] | None = Field(
        None,
        description="Models with two denoisers only: which gets the adapter, the one for little noise, the one for "
        "much, or both. null: the one that the chain visits last, low.",
    )
    checkpointing: Literal["none", "step", "blocks", "both", "clips"] = Field(
        "blocks",
        description="What is recomputed in the backward pass: whole steps, the denoiser's blocks, both, nothing. "
        "clips: both, one clip and one of guidance's prompts at a time: the least memory (docs/speed.md).",
    )
    vae_context: Annotated[int, Field(ge=0)] | None = Field(
        1,
        description="Causal VAEs only: how many latent frames before a judged frame's own get its gradient. Less needs "
        "less memory; what is kept is exact. null: all.",
    )
    tiled_decoding: bool = Field(
        False,
        description="Evaluation, previews and generation only: decode clips in overlapping tiles of 256 pixels, for "
        "sizes whose decoding does not fit into memory. Pixels differ a little (docs/generation.md).",
    )
