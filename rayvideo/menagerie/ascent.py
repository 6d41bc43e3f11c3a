"""Reward ascent in one process: deliberately greedy runs whose clips show how a judge is fooled.

Also a readable miniature of the whole algorithm: no Ray, no DeepSpeed, one judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from rayvideo import editing
from rayvideo.evaluation.generate import embed_captions
from rayvideo.menagerie.world import FRAMES
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.rewards.base import Reward
from rayvideo.rewards.pixels import clamp_pixels
from rayvideo.rewards.temporal import attenuation, sample_segments, video_reward
from rayvideo.sections import Lora


def ascend(
    pipeline: Path,
    judge: Reward,
    clips: Tensor,
    captions: Sequence[str],
    *,
    steps: int,
    lr: float,
    chain: int = 10,
    grad_steps: int = 2,
    batch: int = 2,
    segments: int = 4,
    clamp: Literal["straight_through", "hard"] = "straight_through",
    seed: int = 0,
) -> VideoModel:
    """Tune the model in `pipeline` on `clips` [N, 16, 3, 64, 64] in [0, 1] and return it with its adapter."""
    model = load_model(pipeline)
    model.denoiser = add_lora(model.denoiser, Lora(), seed)
    optimizer = torch.optim.AdamW(lora_parameters(model.denoiser).values(), lr=lr, weight_decay=0.0)
    table = embed_captions(model, captions)
    grid = model.schedule.chain(chain, 0.6)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latents = torch.cat([model.encode_frames(clip[None]).sample(generator) for clip in clips])
    progress = tqdm(range(steps), desc=f"ascent lr {lr:g}", mininterval=2)
    for _ in progress:
        chosen = torch.randint(len(clips), (batch,), generator=generator)
        names = [captions[i] for i in chosen.tolist()]
        prompts = torch.stack([table[""]] * batch + [table[name] for name in names])
        start = latents[chosen]
        noisy = model.schedule.corrupt(start, editing.offset_noise(start, 0.1, generator), grid.levels[0])

        def predict_pair(latents: Tensor, timestep: Tensor, prompts: Tensor = prompts) -> Tensor:
            return model.predict(latents, timestep, prompts)

        predict = editing.guided(predict_pair, 3.0)
        grad_on = editing.steps_with_gradient("last", grad_steps, grid.steps)
        edited = editing.run_chain(predict, noisy, model.schedule, grid, grad_on=grad_on, checkpoint=False)
        indices = sample_segments(batch, FRAMES, segments, generator=generator)
        frames = clamp_pixels(model.decode_frames(edited, indices), clamp).flatten(0, 1)
        scores = judge.score(frames, [name for name in names for _ in range(segments)]).unflatten(0, (batch, segments))
        loss = (1 - video_reward(scores, attenuation(indices, FRAMES))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.set_postfix(score=f"{scores.mean().item():.4f}", refresh=False)
    return model
