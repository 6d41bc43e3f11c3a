"""A small VGen UNet, written down from the published structure with its module names, as an independent reference.

Channels are laid out as there: everything spatial sees [B·F, C, H, W], everything temporal [B, C, F, H, W].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, STEM_HEADS, RANK = 2, 8, 4


class Size(NamedTuple):
    dim: int
    multiples: tuple[int, ...]
    attentive: tuple[bool, ...]
    head_dim: int
    context: int


RELEASE = Size(320, (1, 2, 4, 4), (True, True, True, False), 64, 1024)
SMALL = Size(32, (1, 2), (True, False), 16, 24)


class Lora(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.down_linear = nn.Linear(width_in, RANK, bias=False)
        self.up_linear = nn.Linear(RANK, width_out, bias=False)

    def forward(self, x):
        return self.up_linear(self.down_linear(x))


class Attention(nn.Module):
    def __init__(self, width, context, heads, lora):
        super().__init__()
        self.heads, self.lora = heads, lora
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))
        if lora:
            self.to_q_lora, self.to_out_lora = Lora(width, width), Lora(width, width)
            self.to_k_lora, self.to_v_lora = Lora(context, width), Lora(context, width)

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        if self.lora:
            q, k, v = q + self.to_q_lora(x), k + self.to_k_lora(context), v + self.to_v_lora(context)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.to_out(mixed) + (self.to_out_lora(mixed) if self.lora else 0)


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(Gated(width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width, context, heads, lora):
        super().__init__()
        self.attn1 = Attention(width, width, heads, lora)
        self.attn2 = Attention(width, context or width, heads, lora)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context=None):
        own = self.norm1(x)
        x = x + self.attn1(own, own)
        query = self.norm2(x)
        x = x + self.attn2(query, query if context is None else context)
        return x + self.ff(self.norm3(x))


class Spatial(nn.Module):
    def __init__(self, size, width, lora):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, size.context, width // size.head_dim, lora)])

    def forward(self, x, context):
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, context))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Temporal(nn.Module):
    def __init__(self, width, inner, heads, lora):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv1d(width, inner, 1), nn.Conv1d(inner, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(inner, None, heads, lora)])

    def forward(self, x):
        b, c, f, h, w = x.shape
        lines = self.norm(x).permute(0, 3, 4, 1, 2).reshape(b * h * w, c, f)
        lines = self.transformer_blocks[0](self.proj_in(lines).transpose(1, 2)).transpose(1, 2)
        return x + self.proj_out(lines).view(b, h, w, c, f).permute(0, 3, 4, 1, 2)


class TemporalConv(nn.Module):
    def __init__(self, width):
        super().__init__()
        for i in range(1, 5):
            middle = [nn.Dropout(0.0)] if i > 1 else []
            conv = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
            self.add_module(f"conv{i}", nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), *middle, conv))

    def forward(self, x):
        h = x
        for conv in self.children():
            h = conv(h)
        return x + h


class Residual(nn.Module):
    def __init__(self, size, width, out):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * size.dim, out))
        conv = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), conv)
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.temopral_conv = TemporalConv(out)

    def forward(self, x, time, clips):
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        h = self.skip_connection(x) + self.out_layers(h)
        return frames(self.temopral_conv(video(h, clips)))


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def video(x, clips):
    return x.unflatten(0, (clips, -1)).transpose(1, 2)


def frames(x):
    return x.transpose(1, 2).flatten(0, 1)


class UNet(nn.Module):
    """Noise [B, 4, F, H, W] for latents of that shape, times [B] and text [B, L, context]."""

    def __init__(self, size=SMALL, lora=False):
        super().__init__()
        self.size, dim = size, size.dim
        widths = [dim * multiple for multiple in size.multiples]
        self.time_embed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim))
        stem = [nn.Conv2d(4, dim, 3, padding=1), Temporal(dim, STEM_HEADS * size.head_dim, STEM_HEADS, lora)]
        self.input_blocks, skips, width = nn.ModuleList([nn.ModuleList(stem)]), [dim], dim
        for level, out in enumerate(widths):
            for _ in range(LAYERS):
                self.input_blocks.append(self._entry(size, width, out, level, lora))
                skips.append(out)
                width = out
            if level < len(widths) - 1:
                self.input_blocks.append(Down(width))
                skips.append(width)
        mixers = [Spatial(size, width, lora), Temporal(width, width, width // size.head_dim, lora)]
        self.middle_block = nn.ModuleList([Residual(size, width, width), *mixers, Residual(size, width, width)])
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for layer in range(LAYERS + 1):
                entry = self._entry(size, width + skips.pop(), out, level, lora)
                width = out
                if level > 0 and layer == LAYERS:
                    entry.append(Up(out))
                self.output_blocks.append(entry)
        self.out = nn.Sequential(nn.GroupNorm(32, dim), nn.SiLU(), nn.Conv2d(dim, 4, 3, padding=1))

    @staticmethod
    def _entry(size, width, out, level, lora):
        mixers = (
            [Spatial(size, out, lora), Temporal(out, out, out // size.head_dim, lora)] if size.attentive[level] else []
        )
        return nn.ModuleList([Residual(size, width, out), *mixers])

    def forward(self, latents, t, text):
        clips, count = latents.shape[0], latents.shape[2]
        half = self.size.dim // 2
        rates = 10000 ** (-torch.arange(half) / half)
        angles = t[:, None] * rates
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1)).repeat_interleave(count, 0)
        text = text.repeat_interleave(count, 0)

        def run(module, x):
            if isinstance(module, nn.ModuleList):
                for inner in module:
                    x = run(inner, x)
                return x
            if isinstance(module, Residual):
                return module(x, time, clips)
            if isinstance(module, Spatial):
                return module(x, text)
            return frames(module(video(x, clips))) if isinstance(module, Temporal) else module(x)

        x, skips = frames(latents), []
        for block in self.input_blocks:
            x = run(block, x)
            skips.append(x)
        x = run(self.middle_block, x)
        for block in self.output_blocks:
            x = run(block, torch.cat([x, skips.pop()], dim=1))
        return video(self.out(x), clips)
