"""InstructVideo's training step, of this package's functions in the paper's order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.cases import Setting, World
from benchmarks.gpu.networks import build_judge, build_model
from rayvideo.editing import Predict, offset_noise, run_chain
from rayvideo.models import VideoModel
from rayvideo.models.decoding import frame_by_frame
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.rewards import clamp_pixels
from rayvideo.rewards.temporal import attenuation, rate_per_frame, sample_segments, video_reward
from rayvideo.schedules import Chain
from rayvideo.sections import Editing
from rayvideo.seeding import generator_for
from rayvideo.training.pathwise import reward_loss

SEGMENTS = 4
PARTS = ("rollout", "gradient step", "decode", "judge", "backward", "optimizer")
"""Of a step. The rollout has no gradient; the backward pass runs again what was checkpointed."""

Part = Callable[[str], AbstractContextManager[None]]
"""Measures a block of code as this part of the step."""


class Step:
    """A training step of a world, as often as it is called: the same clips and draws each time.

    The judge knows the captions already, as after an epoch: its text tower is not run.
    """

    def __init__(self, world: World, setting: Setting, configs: Path, device: torch.device) -> None:
        self._world, self._setting, batch = world, setting, setting.batch_size
        self._model = build_model(world, setting, configs, device)
        self._judge = build_judge(setting.judge, configs, device)
        with device:
            shape = self._model.latent_shape(world.frames, world.height, world.width)
            self._posterior = self._model.posterior(*torch.zeros(2, batch, *shape))
            self._prompts = torch.randn(batch, world.tokens, self._model.prompt_width)
            self._nothing = torch.randn(1, world.tokens, self._model.prompt_width)
        self._captions = [f"clip {number}" for number in range(batch) for _ in range(SEGMENTS)]
        self._judge.caption_features(self._captions)
        self._model.denoiser = add_lora(self._model.denoiser, world.lora, seed=0)
        self.adapter = list(lora_parameters(self._model.denoiser).values())
        for weight in self.adapter:
            weight.data = weight.data.to(setting.adapter)
        self._optimizer = torch.optim.AdamW(self.adapter, lr=1e-5, weight_decay=0.0)
        self.chain = chain_of(self._model, world.editing)

    def __call__(self, part: Part) -> Tensor:
        """Make it; returns the loss []."""
        world, schedule, k = self._world, self._model.schedule, self._world.editing.grad_steps
        first, last = Chain(self.chain.timesteps[:-k], self.chain.levels[:-k]), self.chain.last(k)
        generators = [generator_for(0, "edit", number) for number in range(self._setting.batch_size)]
        predict = self._predict()
        with part("rollout"):
            clean = self._posterior.sample(generators)
            noise = offset_noise(clean, schedule.offset_noise, generators)
            noisy = schedule.corrupt(clean, noise, self.chain.levels[0])  # Eq. 5
            noisy = run_chain(predict, noisy, schedule, first)  # Eq. 3, 4
        with part("gradient step"):
            whole = self._setting.checkpointing in ("step", "both")
            edited = run_chain(predict, noisy, schedule, last, grad_on=range(k), checkpoint=whole)
        with part("decode"):
            drawn = sample_segments(len(clean), world.frames, SEGMENTS, generator=generators)  # Eq. 6
            pixels = clamp_pixels(self._decode(edited, drawn), "straight_through")
        with part("judge"):
            scores = self._judge.score(pixels.flatten(0, 1), self._captions).unflatten(0, drawn.shape)
            rate = rate_per_frame(1.0, world.attenuation_unit, world.frames)
            weights = attenuation(drawn, world.frames, rate).to(scores.device)  # Eq. 7
            loss = reward_loss(video_reward(scores, weights))  # Eq. 8, 9
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()
        return loss.detach()

    def _predict(self) -> Predict:
        model, prompts, nothing, scale = self._model, self._prompts, self._nothing, self._world.editing.guidance
        if self._setting.guidance == "one call":
            return model.guided(prompts, nothing, scale)
        conditional, unconditional = (
            model.guided(text, nothing, 1.0) for text in (prompts, nothing.expand_as(prompts))
        )

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            base = unconditional(latents, timestep)
            return base + scale * (conditional(latents, timestep) - base)

        return predict

    def _decode(self, latents: Tensor, drawn: Tensor) -> Tensor:
        if self._setting.decode == "frame_by_frame":
            return frame_by_frame(partial(self._model.decode_apart, context=1), latents, drawn)
        return self._model.decode_frames(latents, drawn, context=1)


def chain_of(model: VideoModel, options: Editing) -> Chain:
    """The steps that a recipe runs."""
    schedule, steps = model.schedule, options.steps
    if options.start_sigma is None:
        return schedule.chain(steps, options.strength)
    return schedule.chain(steps).last(schedule.steps_from(steps, options.start_sigma))
