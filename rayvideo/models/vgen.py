"""Turns the files of InstructVideo's release (VGen's layout) into a diffusers pipeline and a PEFT adapter.

Widths and depths are read off the tensors. Only the width of an attention head can't be, so the caller gives it.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rayvideo import sections
from rayvideo.models import vgen_names
from rayvideo.models.base import ModelError
from rayvideo.models.lora import PREFIX, UNTRAINED, add_lora, is_untrained, lora_parameters, save_adapter
from rayvideo.staging import written_whole
from rayvideo.weights import read_tensors, require_fit

logger = logging.getLogger(__name__)

HEAD_DIM = 64
"""Width of an attention head in the release's UNet and in OpenCLIP ViT-H-14's text tower."""
GROUPS = 32
STEM_HEADS = 8
"""Heads of the first temporal transformer, in VGen and, without a choice, in diffusers."""
SAMPLE_SIZE = 32
"""Side of the latents that the release was trained on, 256 pixels; diffusers' default size of a clip."""
SCALING = 0.18215
"""Stable Diffusion's factor from the VAE's units to the UNet's."""
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
VAE_PREFIX = "first_stage_model."
OPEN_CLIP_REST = ("visual.", "text_projection", "logit_scale")
"""What an OpenCLIP file holds beside the text tower."""
PIPELINE = {
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet3DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


@dataclass(frozen=True)
class Lora:
    """An adapter that came inside a UNet file."""

    rank: int
    tensors: dict[str, Tensor]
    """By the names that PEFT gives them in the model."""


def convert(
    *,
    unet: str | Path,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    tokenizer: str | Path | None = None,
    out: str | Path,
    head_dim: int = HEAD_DIM,
    require_lora: bool = False,
) -> list[str]:
    """Write the parts that were given into the new folder `out`, whole or not at all, and name them.

    `unet/` and `scheduler/` always; `adapter/` (PEFT) if the UNet file holds LoRA; `vae/`; `text_encoder/` and, from
    `tokenizer` (a folder or hub id) or from OpenCLIP's own vocabulary, `tokenizer/`; `model_index.json` if these make a
    whole TextToVideoSDPipeline. Weights keep their number format.

    Args:
        unet: VGen's UNetSD_T2VBase or UNetSD_LoRA: a state dict, bare or under "state_dict".
        vae: a Stable Diffusion checkpoint, of which only `first_stage_model.*` is read.
        text: an OpenCLIP model; all layers of its text tower but the last are kept, as the release uses them.
        head_dim: width of the UNet's attention heads.
        require_lora: refuse a UNet file without LoRA.

    Raises:
        WeightsError: if a file can't be read, or tensors are missing, unknown or of another shape.
        ModelError: if a file is of another kind.
        UserError: if `out` exists.
    """
    parts: dict[str, Any] = {"scheduler": DDIMScheduler(**SCHEDULE)}
    parts["unet"], lora = read_unet(unet, head_dim)
    if require_lora and lora is None:
        raise ModelError(f"{unet} holds no LoRA tensors (….to_q_lora.down_linear.weight, …); is it the base model?")
    if lora is not None and is_untrained(lora.tensors):
        logger.warning(UNTRAINED.format(unet))
    if vae is not None:
        parts["vae"] = read_vae(vae)
    if text is not None:
        parts["text_encoder"] = read_text_tower(text)
        if words := read_tokenizer(tokenizer, parts["text_encoder"].config):
            parts["tokenizer"] = words
    with written_whole(out) as folder:
        folder.mkdir()
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        if parts.keys() == PIPELINE.keys():
            index = {"_class_name": "TextToVideoSDPipeline", "_diffusers_version": diffusers.__version__, **PIPELINE}
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        if lora is not None:
            tuned = add_lora(parts["unet"], sections.Lora(rank=lora.rank, alpha=lora.rank), seed=0)
            save_adapter(tuned, folder / "adapter", lora.tensors)
        return sorted(entry.name for entry in folder.iterdir())


def read_unet(path: str | Path, head_dim: int = HEAD_DIM) -> tuple[UNet3DConditionModel, Lora | None]:
    """The UNet in a VGen file, and the adapter if the file holds one (its scale is 1: VGen leaves lora_alpha unset)."""
    file = read_tensors(path)
    with torch.device("meta"):
        unet = _build(UNet3DConditionModel, path, **unet_config(file, path, head_dim))
    sources = vgen_names.unet_sources(unet)
    expected = vgen_names.expected(unet.state_dict(), sources)
    ranks = Counter(tensor.shape[0] for name, tensor in file.items() if name.endswith("_lora.down_linear.weight"))
    if not ranks:
        require_fit(expected, file, f"{path} as VGen's UNet")
        return _filled(unet, sources, file), None
    (rank, _), *_ = ranks.most_common()
    names, shapes = lora_layout(unet, rank)
    require_fit(expected | {names[ours]: shapes[ours] for ours in names}, file, f"{path} as VGen's UNet with LoRA")
    return _filled(unet, sources, file), Lora(rank, {ours: file[theirs] for ours, theirs in names.items()})


def lora_layout(unet: UNet3DConditionModel, rank: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Two tables by PEFT's names of an adapter's tensors, for an adapter on all attentions: the names that VGen has for
    them, and tensors of their shapes on the meta device.
    """
    with torch.device("meta"):
        blank = UNet3DConditionModel.from_config(unet.config)
        shapes: dict[str, Tensor] = dict(lora_parameters(add_lora(blank, sections.Lora(rank=rank, alpha=rank), seed=0)))
    names = {}
    for name in shapes:
        module, matrix, *_ = name.removeprefix(PREFIX).rsplit(".", 3)
        names[name] = vgen_names.lora_name(module, matrix, unet.config)
    return names, shapes


def unet_config(file: Mapping[str, Tensor], path: str | Path, head_dim: int) -> dict[str, Any]:
    """Arguments of UNet3DConditionModel for the tensors of a VGen file."""
    size = _Sizes(file, f"{path} is not a VGen UNet")
    levels = 1 + sum(f"input_blocks.{i}.op.weight" in file for i in range(len(file)))
    period = next((i for i in range(1, len(file)) if f"input_blocks.{i}.op.weight" in file), 0)
    if levels == 1:
        raise ModelError(f"{path} is not a VGen UNet of several levels: it has no input_blocks.….op.weight")
    first = [1 + level * period for level in range(levels)]
    widths = [
        size.of((f"input_blocks.{i}.0.in_layers.2.weight", 0), (f"input_blocks.{i}.0.out_layers.0.weight", 0))
        for i in first
    ]
    attentive = [any(name.startswith(f"input_blocks.{i}.1.") for name in file) for i in first]
    if wrong := [width for width in widths if head_dim < 1 or width % head_dim or width % GROUPS]:
        raise ModelError(
            f"{path}: width {wrong[0]} does not divide into heads of {head_dim} and {GROUPS} groups; give --head-dim"
        )
    stem = size.of(("input_blocks.0.1.proj_in.weight", 0), ("input_blocks.0.1.proj_in.bias", 0))
    if stem != STEM_HEADS * head_dim:
        raise ModelError(
            f"{path}: the first temporal transformer is {stem} wide, {STEM_HEADS} heads of {head_dim} are "
            f"{STEM_HEADS * head_dim}; if the heads have another width, give it as --head-dim"
        )
    channels = size.of(("input_blocks.0.0.weight", 1), ("out.2.weight", 0), ("out.2.bias", 0))
    return {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": period - 1,
        "down_block_types": tuple("CrossAttnDownBlock3D" if yes else "DownBlock3D" for yes in attentive),
        "up_block_types": tuple("CrossAttnUpBlock3D" if yes else "UpBlock3D" for yes in reversed(attentive)),
        "cross_attention_dim": size.of(
            *((f"middle_block.1.transformer_blocks.0.attn2.{part}.weight", 1) for part in ("to_k", "to_v"))
        ),
        "attention_head_dim": head_dim,
        "norm_num_groups": GROUPS,
        "sample_size": SAMPLE_SIZE,
    }


def read_vae(path: str | Path) -> AutoencoderKL:
    """The VAE of a Stable Diffusion checkpoint; the rest of the file is left alone."""
    file = {name: tensor for name, tensor in read_tensors(path).items() if name.startswith(VAE_PREFIX)}
    size = _Sizes(file, f"{path} is not a Stable Diffusion checkpoint with {VAE_PREFIX}*")
    coder = VAE_PREFIX + "encoder."
    levels = _count(file, coder + "down.")
    widths = [
        size.of((f"{coder}down.{i}.block.0.conv1.weight", 0), (f"{coder}down.{i}.block.0.norm2.weight", 0))
        for i in range(levels)
    ]
    with torch.device("meta"):
        vae = _build(
            AutoencoderKL,
            path,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(widths),
            layers_per_block=_count(file, coder + "down.0.block."),
            latent_channels=size.of(
                (VAE_PREFIX + "post_quant_conv.weight", 0), (VAE_PREFIX + "post_quant_conv.bias", 0)
            ),
            norm_num_groups=GROUPS,
            scaling_factor=SCALING,
        )
    sources = vgen_names.vae_sources(vae)
    require_fit(vgen_names.expected(vae.state_dict(), sources), file, f"{path} as Stable Diffusion's VAE")
    return _filled(vae, sources, file)


def read_text_tower(path: str | Path) -> CLIPTextModel:
    """The text tower of an OpenCLIP model, without its last layer, as the release conditions on it."""
    file = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(OPEN_CLIP_REST)}
    size = _Sizes(file, f"{path} is not an OpenCLIP model")
    width = size.of(("ln_final.weight", 0), ("ln_final.bias", 0), ("token_embedding.weight", 1))
    if width % HEAD_DIM:
        raise ModelError(f"{path}: a text tower {width} wide does not divide into heads of {HEAD_DIM}")
    layers = _count(file, "transformer.resblocks.")
    config = {
        "vocab_size": size.of(("token_embedding.weight", 0)),
        "hidden_size": width,
        "intermediate_size": size.of(
            *((f"transformer.resblocks.0.mlp.{part}", 0) for part in ("c_fc.weight", "c_fc.bias"))
        ),
        "num_attention_heads": width // HEAD_DIM,
        "max_position_embeddings": size.of(("positional_embedding", 0)),
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "bos_token_id": size.of(("token_embedding.weight", 0)) - 2,
        "eos_token_id": size.of(("token_embedding.weight", 0)) - 1,
    }
    with torch.device("meta"):
        whole = CLIPTextModel(CLIPTextConfig(**config, num_hidden_layers=layers))
        tower = CLIPTextModel(CLIPTextConfig(**config, num_hidden_layers=layers - 1))
    expected = vgen_names.expected(whole.state_dict(), vgen_names.text_sources(whole.state_dict()))
    require_fit(expected, file, f"{path} as OpenCLIP's text tower")
    return _filled(tower, vgen_names.text_sources(tower.state_dict()), file)


def read_tokenizer(source: str | Path | None, tower: CLIPTextConfig) -> CLIPTokenizer | None:
    """The tokenizer in a folder or under a hub id; without a source OpenCLIP's own, if the tower has its vocabulary.

    Padding is token 0, "!", as in the release; so an exclamation mark in a caption is read as padding too, which
    OpenCLIP's own code does not do.
    """
    if source is not None:
        try:
            given = CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ModelError(f"tokenizer {source} can't be loaded: {error}") from error
        if len(given) != tower.vocab_size:
            raise ModelError(f"tokenizer {source} knows {len(given)} tokens, the text tower {tower.vocab_size}")
        return given
    clip = SimpleTokenizer()
    if tower.vocab_size != clip.vocab_size:
        return None
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return CLIPTokenizer(
        vocab={renamed.get(token, token): number for token, number in clip.encoder.items()},
        merges=sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__),
        pad_token="!",
        model_max_length=tower.max_position_embeddings,
    )


@dataclass(frozen=True)
class _Sizes:
    """Reads sizes off a file's tensors.

    A size is read off several tensors, and the majority counts. So one tensor of a wrong shape does not mislead, and
    `require_fit` can name it later.
    """

    file: Mapping[str, Tensor]
    complaint: str
    """What an error message begins with, if the tensors that a size is read off are not there."""

    def of(self, *axes: tuple[str, int]) -> int:
        """The size that most of the named axes have."""
        sizes = [
            self.file[name].shape[axis] for name, axis in axes if name in self.file and self.file[name].ndim > axis
        ]
        if not sizes:
            raise ModelError(f"{self.complaint}: it lacks {' and '.join(name for name, _ in axes)}")
        return Counter(sizes).most_common(1)[0][0]


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})


def _build(kind: Any, path: str | Path, **config: Any) -> Any:
    try:
        return kind(**config)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: no {kind.__name__} can be built from its shapes: {error}") from error


def _filled(model: Any, sources: Mapping[str, vgen_names.Source], file: Mapping[str, Tensor]) -> Any:
    """The model with the file's tensors in place of its own, not copied."""
    model.load_state_dict({name: source.read(file) for name, source in sources.items()}, assign=True)
    return model.requires_grad_(False).eval()
