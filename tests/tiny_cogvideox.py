"""A randomly initialised model in CogVideoXPipeline's format, some hundred kilobytes, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

Kind = Literal["2B", "5B"]
"""2B adds positions to its tokens; 5B turns queries and keys by them."""

WORDS = ("a", "red", "cat", "dog", "jumps", "slowly")
TEXT_WIDTH = 16
CHANNELS = 4
SCALING_FACTOR = 0.7
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}


def build_tokenizer() -> T5Tokenizer:
    """A few words, and letters for all others."""
    pieces = [*(f"▁{word}" for word in WORDS), "▁", *map(chr, range(33, 127))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -float(number)) for number, piece in enumerate(pieces, 1)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def build_transformer(kind: Kind) -> CogVideoXTransformer3DModel:
    """Two blocks; trained, so to say, on 9 frames of 32x48 pixels."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_height=4,
        sample_width=6,
        sample_frames=9,
        use_rotary_positional_embeddings=kind == "5B",
    )
    for weight in transformer.parameters():  # born so small that text, time and place would hardly matter
        weight.data += 0.1 * torch.randn_like(weight)
    return transformer


def build_vae() -> AutoencoderKLCogVideoX:
    """A VAE that compresses time by 4 and sizes by 8."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=48,
        scaling_factor=SCALING_FACTOR,
    )


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """T5 with two layers."""
    config: dict[str, Any] = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **config))


def save_pipeline(folder: Path, kind: Kind = "5B", seed: int = 0) -> Path:
    """Write a CogVideoXPipeline, as diffusers does."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer)),
        vae=build_vae(),
        transformer=build_transformer(kind),
        scheduler=CogVideoXDDIMScheduler(**SCHEDULE),
    )
    pipeline.save_pretrained(folder)
    return folder
