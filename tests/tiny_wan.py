"""Randomly initialised models in WanPipeline's format, some kilobytes to a few megabytes each, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

Kind = Literal["2.1", "5B", "A14B"]
"""Wan 2.1; Wan 2.2 TI2V-5B with its residual VAE; Wan 2.2 T2V-A14B with two experts."""

WORDS = ("a", "red", "cat", "dog", "jumps", "over", "the", "moon", "at", "night")
TEXT_WIDTH = 16
CHANNELS = 4
MEAN, STD = [0.3, -0.2, 0.1, 0.5], [0.9, 1.4, 2.0, 0.7]
"""Of each latent channel."""
SHIFT = 5.0
"""flow_shift of the checkpoint's scheduler."""


def build_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary of a few words and of all letters."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*(f"▁{word}" for word in WORDS), "▁", *letters]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -float(number)) for number, piece in enumerate(pieces, 1)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def build_transformer() -> WanTransformer3DModel:
    """Two blocks with every kind of layer that Wan's text-to-video models have."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    with torch.no_grad():
        for weight in transformer.parameters():  # born so small that text and time would hardly matter
            weight += 0.1 * torch.randn_like(weight)
    return transformer


def build_vae(kind: Kind) -> AutoencoderKLWan:
    """A VAE that compresses time by 4 and sizes by 8; by 16 for the residual kind."""
    options: dict[str, Any] = {}
    if kind == "5B":
        options = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 12}
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=MEAN,
        latents_std=STD,
        scale_factor_spatial=16 if kind == "5B" else 8,
        **options,
    )
    with torch.no_grad():  # pixels well inside of what the pipeline clamps to
        vae.decoder.conv_out.weight *= 0.3
    return vae


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """UMT5 with two layers."""
    config = UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
    )
    return UMT5EncoderModel(config)


def build_scheduler(**options: Any) -> UniPCMultistepScheduler:
    """What Wan's checkpoints come with."""
    given = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT}
    return UniPCMultistepScheduler(**given | options)


def build_pipeline(kind: Kind = "2.1", seed: int = 0) -> WanPipeline:
    """The whole pipeline; 2.1 and A14B make frames of multiples of 16 pixels, 5B of 32."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    networks: list[nn.Module] = [build_transformer(), build_vae(kind), build_text_encoder(len(tokenizer))]
    transformer, vae, text_encoder = (network.eval() for network in networks)
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=build_scheduler(),
        transformer=transformer,
        transformer_2=build_transformer().eval() if kind == "A14B" else None,
        boundary_ratio=0.875 if kind == "A14B" else None,
        expand_timesteps=kind == "5B",
    )


def save_pipeline(folder: Path, kind: Kind = "2.1", seed: int = 0) -> Path:
    """Write it as WanPipeline does."""
    build_pipeline(kind, seed).save_pretrained(folder)
    return folder
