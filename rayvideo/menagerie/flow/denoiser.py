"""The flow model's tokenizer, text tower and transformer, trained together on latents of the causal VAE."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from tqdm import tqdm
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from rayvideo.menagerie.fit import Losses, fit, ranks
from rayvideo.menagerie.flow.autoencoder import CHANNELS
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import caption_of, sample_scene
from rayvideo.models.posterior import Normaliser
from rayvideo.models.wan.family import TEXT_LENGTH
from rayvideo.precision import CPU, autocast

TEXT_WIDTH = 96
HEADS, HEAD, BLOCKS = 4, 36, 6
SHIFT = 3.0
EMPTY_SHARE = 0.1  # captions replaced by the empty one, for classifier-free guidance
STILLS = 6  # frames of each clip that are also kept as images


def build_scheduler() -> UniPCMultistepScheduler:
    """The scheduler that Wan's folders have."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)


def build_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that knows this world's words; any other word falls back to letters."""
    rng = random.Random(0)
    words = sorted({word for _ in range(4000) for word in caption_of(sample_scene(rng), rng).split()})
    pieces = [*(f"▁{word}" for word in words), "▁", *map(chr, range(33, 127))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -float(number)) for number, piece in enumerate(pieces, 1)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def build_text_tower(vocabulary: int) -> UMT5EncoderModel:
    """An untrained UMT5 encoder."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=TEXT_WIDTH // 4,
            d_ff=3 * TEXT_WIDTH,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


@torch.no_grad()
def build_transformer() -> WanTransformer3DModel:
    """An untrained transformer whose output is about its input: the noise, for the larger part of the flow."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=432,
        num_layers=BLOCKS,
    )
    width = HEADS * HEAD
    inside = nn.init.orthogonal_(torch.empty(width, CHANNELS))
    transformer.patch_embedding.weight.copy_(inside.view(width, CHANNELS, 1, 1, 1))
    nn.init.zeros_(transformer.patch_embedding.bias)
    # The last norm makes a token's deviation one.
    transformer.proj_out.weight.copy_(inside.T * math.sqrt(CHANNELS / width))
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


class ShortText(WanAttnProcessor):
    """Attention to a text of 512 rows that is given without most of its rows of zeros, which are all alike.

    A key that stands for n equal ones counts as log n more: the same softmax at a twentieth of the cost.
    """

    bias: Tensor

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)
        return out


@contextmanager
def short_text(transformer: WanTransformer3DModel) -> Iterator[ShortText]:
    """Within this context the transformer's attention to texts takes them shortened; see `shorten`."""
    short = ShortText()
    layers = [block.attn2 for block in transformer.blocks]
    usual = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(short)
    yield short
    for layer, processor in zip(layers, usual, strict=True):
        layer.set_processor(processor)


def shorten(lengths: Tensor, rows: int) -> Tensor:
    """What to add to the scores of `rows` keys so that they are as 512: [N, 1, 1, rows], for texts of these lengths.

    Args:
        lengths: [N] rows that are not zero, fewer than `rows`.
    """
    zeros = torch.arange(rows) >= lengths[:, None]
    weight = torch.log((TEXT_LENGTH - lengths) / (rows - lengths))
    return torch.where(zeros, weight[:, None], 0.0)[:, None, None]


def embed(text: UMT5EncoderModel, tokenizer: T5Tokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The captions' rows [N, L, C], at least one of zeros behind each, and how many are not [N]."""
    tokens = tokenizer(list(captions), padding=True, return_tensors="pt")
    states = text(tokens.input_ids, tokens.attention_mask).last_hidden_state
    states = states.masked_fill(tokens.attention_mask[..., None] == 0, 0)
    return F.pad(states, (0, 0, 0, 1)), tokens.attention_mask.sum(1)


@torch.no_grad()
def encode_pool(vae: AutoencoderKLWan, pool: Pool, work: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised posterior means of every clip as pre-training meets it, and mirrored, and of some frames as images.

    Returns:
        Clips float16 [N, 2, C, 5, 8, 8] and images float16 [N, 2, STILLS, C, 8, 8].
    """
    rank, count = ranks()
    files = [work / f"flow-latents-{seed}-{len(pool.scenes)}-{part}-of-{count}.npz" for part in range(count)]
    if not files[rank].is_file():
        config, length = vae.config, pool.frames.shape[1]
        normaliser = Normaliser(torch.tensor(config.latents_mean), 1 / torch.tensor(config.latents_std))

        def means(pixels: Tensor) -> Tensor:
            with autocast(CPU):
                mean = vae.encode(pixels * 2 - 1).latent_dist.mean
            return normaliser.normalise(mean.float())

        clips, images = [], []
        for index in tqdm(range(rank, len(pool.scenes), count), desc="encoding", mininterval=2, disable=rank > 0):
            clip = torch.from_numpy(pool.of_varied_quality(index, seed * 1_000_003 + index)).movedim(-1, 0)
            both = torch.stack([clip, clip.flip(-1)])
            clips.append(means(both).half().numpy())
            stills = both[:, :, torch.randperm(length, generator=torch.Generator().manual_seed(index))[:STILLS]]
            stills = stills.transpose(1, 2).flatten(0, 1)[:, :, None]
            images.append(means(stills)[:, :, 0].unflatten(0, (2, STILLS)).half().numpy())
        temporary = files[rank].with_suffix(".tmp.npz")
        np.savez(temporary, clips=np.stack(clips), images=np.stack(images))
        temporary.replace(files[rank])
    if count > 1:
        dist.barrier()
    parts = [np.load(file) for file in files]
    return _interleave([part["clips"] for part in parts]), _interleave([part["images"] for part in parts])


def _interleave(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of which part p of n holds those numbered p, p + n, p + 2n …"""
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def train_denoiser(
    clips: np.ndarray,
    images: np.ndarray,
    pool: Pool,
    work: Path,
    *,
    image_steps: int,
    clip_steps: int,
) -> tuple[WanTransformer3DModel, UMT5EncoderModel, T5Tokenizer]:
    """Train text tower and transformer on velocities, on images, then on whole clips.

    Noise levels are those of the shifted grid: as many as sampling spends at high noise, where a clip's content is
    decided.
    """
    torch.manual_seed(12)
    tokenizer = build_tokenizer()
    text, transformer = build_text_tower(len(tokenizer)), build_transformer()

    def losses_of(step: int, latents: np.ndarray, batch: int, stage: str) -> Losses:
        rng = random.Random(f"flow-{stage}-{step}")
        chosen = [rng.randrange(len(latents)) for _ in range(batch)]
        which = [(rng.randrange(2), rng.randrange(STILLS)) for _ in chosen]
        rows = [
            latents[i, m] if latents is clips else latents[i, m, f][:, None]
            for i, (m, f) in zip(chosen, which, strict=True)
        ]
        clean = torch.from_numpy(np.stack(rows)).float()
        captions = ["" if rng.random() < EMPTY_SHARE else caption_of(pool.scenes[i], rng) for i in chosen]
        noise, uniform = torch.randn_like(clean), torch.rand(batch)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        level = sigma.view(-1, 1, 1, 1, 1)
        embedded, lengths = embed(text, tokenizer, captions)
        short.bias = shorten(lengths, embedded.shape[1])
        predicted = transformer((1 - level) * clean + level * noise, 1000 * sigma, embedded).sample
        return {"velocity": F.mse_loss(predicted, noise - clean)}

    parts = {"text": text, "transformer": transformer}
    stages = (
        ("images", images, 48, image_steps, 1.5e-3),
        ("clips", clips, 10, clip_steps, 1e-3),
    )
    with short_text(transformer) as short:
        for name, latents, batch, count, lr in stages:
            for part in parts.values():
                part.requires_grad_(True)
            loss = partial(losses_of, latents=latents, batch=batch, stage=name)
            fit(f"flow-{name}", parts, loss, steps=count, lr=lr, work=work)
    return transformer, text, tokenizer
