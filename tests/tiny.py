"""Randomly initialised models of the real classes, a few kilobytes each, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 48
REFERENCE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def build_tokenizer() -> CLIPTokenizer:
    """One token per character; the end token has the highest id, as CLIP's pooling expects."""
    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=TOKENS)


def build_unet() -> UNet3DConditionModel:
    """A 3D UNet with every kind of block that the default one has."""
    unet = UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    for name, weight in unet.named_parameters():
        if "conv4" in name:  # born as zeros, which would leave the temporal convolutions out of every test
            torch.nn.init.normal_(weight, std=0.05)
    return unet


def save_pipeline(folder: Path, seed: int = 0) -> Path:
    """Write a TextToVideoSDPipeline for 64x64 frames (8x8 latents) with the reference's schedule."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pipeline = TextToVideoSDPipeline(vae, text, tokenizer, build_unet(), DDIMScheduler(**REFERENCE_SCHEDULE))
    pipeline.save_pretrained(folder)
    return folder


def save_judge(folder: Path, seed: int = 1) -> Path:
    """Write judge.pt in HPSv2's layout with its open_clip config and its tokenizer."""
    tokenizer = build_tokenizer()
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
        "text_cfg": {
            "context_length": TOKENS,
            "vocab_size": len(tokenizer),
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "open_clip reads the tokenizer that lies beside this file",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    torch.save({"state_dict": open_clip.CLIP(**model_cfg).state_dict()}, folder / "judge.pt")
    return folder


def save_clip(folder: Path, seed: int = 2) -> Path:
    """Write a CLIPModel for 32x32 frames with its tokenizer and its preprocessing, as transformers keeps them."""
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    for weight in model.parameters():  # born so small that every frame would look the same
        weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder
