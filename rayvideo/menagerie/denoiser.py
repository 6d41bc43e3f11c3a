"""The menagerie's text-to-video model: tokenizer, text tower and 3D UNet, trained together on latents."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from tokenizers import pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rayvideo.menagerie.autoencoder import CHANNELS, LATENT_STD
from rayvideo.menagerie.fit import Losses, fit
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import FRAMES, caption_of, sample_scene
from rayvideo.precision import CPU, autocast

WIDTH, CONTEXT = 96, 24
EMPTY_SHARE = 0.1  # captions replaced by the empty one, for classifier-free guidance


def build_scheduler() -> DDIMScheduler:
    """The reference's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges were learned on this world's captions; any other text falls back to bytes."""
    rng = random.Random(0)
    captions = [caption_of(sample_scene(rng), rng) for _ in range(4000)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [f"{letter}</w>" for letter in letters]
    special = ["<|startoftext|>", "<|endoftext|>"]  # the end has the highest id: CLIP pools there
    bare = CLIPTokenizer(vocab={word: i for i, word in enumerate([*letters, *special])}, merges=[])
    learned = json.loads(bare.train_new_from_iterator(captions, 1024).backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    words = [*letters, *dict.fromkeys(first + second for first, second in merges), *special]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=CONTEXT)


def build_text_tower(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text tower for `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_denoiser() -> UNet3DConditionModel:
    """An untrained 3D UNet for 8x8 latents, whose output is its input until it learns better."""
    unet = UNet3DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=16,
    )
    _start_as_copy(unet)
    return unet


@torch.no_grad()
def _start_as_copy(unet: UNet3DConditionModel) -> None:
    """Make the untrained UNet return its input: for most of the schedule that is the noise, to within a few percent.

    A UNet has no path that copies. Without one it spends its training on learning to, and what is left of the error
    is larger than all that tells one clip from another. The input travels along the outermost skip connection as x and
    -x, which SiLU leaves whole: silu(x) - silu(-x) = x. Large constants beside it keep the last norm's scale fixed.
    """
    attentions = [m for m in unet.modules() if isinstance(m, (Transformer2DModel, TransformerTemporalModel))]
    last = unet.up_blocks[-1].resnets[-1]
    for layer in (*(attention.proj_out for attention in attentions), last.conv2, unet.conv_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    width, size = unet.conv_out.in_channels, unet.conv_norm_out.num_channels // unet.conv_norm_out.num_groups
    pairs = size // 2 - 1  # of each group's channels, the last two are the constants
    constant = 10.0
    scale = math.sqrt((2 * pairs + 2 * constant**2) / size)
    for channel in range(CHANNELS):
        group, place = divmod(channel, pairs)
        plus, steady = group * size + 2 * place, group * size + 2 * pairs
        for sign, row in ((1.0, plus), (-1.0, plus + 1)):
            unet.conv_in.weight[row], unet.conv_in.bias[row] = 0.0, 0.0
            unet.conv_in.weight[row, channel, 1, 1] = sign
            last.conv_shortcut.weight[row], last.conv_shortcut.bias[row] = 0.0, 0.0
            last.conv_shortcut.weight[row, width + row] = 1.0  # the skip connection comes after `width` channels
            unet.conv_norm_out.weight[row] = scale
            unet.conv_out.weight[channel, row, 1, 1] = sign
        for sign, row in ((1.0, steady), (-1.0, steady + 1)):
            last.conv_shortcut.weight[row], last.conv_shortcut.bias[row] = 0.0, sign * constant


@contextmanager
def _frame_by_frame(unet: UNet3DConditionModel) -> Iterator[None]:
    """Within this context the layers that mix frames, which still return their input, are skipped to save time."""
    layers = [m for m in unet.modules() if isinstance(m, (TemporalConvLayer, TransformerTemporalModel))]
    for layer in layers:
        layer.forward = (lambda x, **_: x) if isinstance(layer, TemporalConvLayer) else (lambda x, **_: (x,))
    yield
    for layer in layers:
        del layer.forward


def tokens_of(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids [N, CONTEXT]."""
    return tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: Pool, work: Path, seed: int) -> np.ndarray:
    """Scaled posterior means of every clip as pre-training meets it, and mirrored: float16 [N, 2, 12, 16, 8, 8]."""
    file = work / f"latents-{seed}-{len(pool.scenes)}.npy"
    if not file.is_file():
        latents = np.empty((len(pool.scenes), 2, CHANNELS, FRAMES, 8, 8), np.float16)
        for index in tqdm(range(len(pool.scenes)), desc="encoding", mininterval=2):
            clip = torch.from_numpy(pool.of_varied_quality(index, seed * 1_000_003 + index)).permute(0, 3, 1, 2)
            both = torch.cat([clip, clip.flip(-1)]) * 2 - 1
            with autocast(CPU):
                mean = vae.encode(both.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            mean = mean.float().unflatten(0, (2, FRAMES)) * vae.config.scaling_factor
            latents[index] = mean.transpose(1, 2).numpy()
        temporary = file.with_suffix(".tmp.npy")
        np.save(temporary, latents)
        temporary.replace(file)
    return np.load(file)


def train_denoiser(
    latents: np.ndarray, pool: Pool, work: Path, *, frame_steps: int, clip_steps: int, seed: int = 2
) -> tuple[UNet3DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Train text tower and UNet on noise prediction, first on single frames, then on whole clips.

    What things look like is learned from many different frames, which are cheap; then how they move.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text, unet, scheduler = build_text_tower(tokenizer), build_denoiser(), build_scheduler()
    unet.set_attn_processor(AttnProcessor())  # on CPUs, torch's fused attention is slow on short sequences
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    # The error of the clean latents that a prediction implies, capped; plain noise error hardly sees the steps in which
    # a clip's content is decided.
    signal = scheduler.alphas_cumprod
    weights = ((1 - signal) / signal / LATENT_STD**2).clamp(0.5, 100)

    def losses_of(step: int, frames: int, batch: int) -> Losses:
        rng = random.Random(f"{seed}-{frames}-{step}")
        chosen = [
            (rng.randrange(len(latents)), rng.randrange(2), rng.randrange(FRAMES - frames + 1)) for _ in range(batch)
        ]
        clean = torch.stack([torch.from_numpy(latents[i, m, :, f : f + frames]) for i, m, f in chosen]).float()
        captions = ["" if rng.random() < EMPTY_SHARE else caption_of(pool.scenes[i], rng) for i, _, _ in chosen]
        noise = torch.randn_like(clean)
        time = torch.randint(0, scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(clean, noise, time)
        with autocast(CPU):
            embedded = text(tokens_of(tokenizer, captions)).last_hidden_state
            predicted = unet(noisy, time, embedded).sample
        errors = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3, 4))
        return {"noise": (errors * weights[time]).mean()}

    parts = {"text": text, "unet": unet}
    with _frame_by_frame(unet):
        fit("denoiser-frames", parts, lambda i: losses_of(i, 1, 128), steps=frame_steps, lr=1e-3, work=work)
    text.requires_grad_(True)
    unet.requires_grad_(True)
    fit("denoiser-clips", parts, lambda i: losses_of(i, FRAMES, 8), steps=clip_steps, lr=5e-4, work=work)
    return unet, text, tokenizer
