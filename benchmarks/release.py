"""A training step as the release of InstructVideo makes it, of this package's parts, on the menagerie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.menagerie.build import WEIGHTS
from rayvideo.menagerie.judges import load_judge
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.rewards.pixels import clamp_pixels
from rayvideo.rewards.temporal import attenuation, sample_segments, video_reward
from rayvideo.sections import Lora

SEGMENTS, GUIDANCE = 4, 3.0


@dataclass(frozen=True)
class Ways:
    """What the release does and rayvideo does not."""

    encodes_again: bool = True
    """Clips and captions, in every step."""
    two_calls: bool = True
    """Of the denoiser, for guidance."""
    decodes_all: bool = True
    """All frames, one by one, with a gradient."""
    tunes_judge: bool = True
    """Its weights get gradients, which nothing uses."""
    nested: bool = True
    """Checkpoints: the step, and in it the blocks, also the decoder's."""
    averages: bool = True
    """A moving average of every weight, one after the other."""


class ReleaseTrainer:
    """Holds model, judge and optimizer, and trains on `clips` [N, F, 3, H, W] in [0, 1] in their order."""

    def __init__(
        self,
        clips: Tensor,
        captions: Sequence[str],
        ways: Ways = Ways(),
        *,
        steps: int = 20,
        grad_steps: int = 1,
        batch: int = 2,
        lr: float = 1e-5,
    ) -> None:
        self.model: VideoModel = load_model(WEIGHTS / "pipeline")
        self.model.denoiser = add_lora(self.model.denoiser, Lora(), seed=0)
        if ways.nested:
            self.model.enable_checkpointing()
        self._judge = load_judge(WEIGHTS / "judge").requires_grad_(ways.tunes_judge)
        weights = lora_parameters(self.model.denoiser).values()
        self._optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
        self._average = {name: weight.clone() for name, weight in self.model.denoiser.state_dict().items()}
        self._clips, self._captions, self._ways, self._batch = clips, list(captions), ways, batch
        self._chain = self.model.schedule.chain(steps, 0.6)
        self._grad_on = editing.steps_with_gradient("last", grad_steps, self._chain.steps)
        self._posteriors = [self.model.encode_frames(clip[None]) for clip in clips]
        self._embeddings = self.model.encode_prompts([*captions, ""])

    def step(self, number: int) -> None:
        """Optimizer step of this number, counted from 0."""
        ways, model, size, frames = self._ways, self.model, self._batch, self._clips.shape[1]
        chosen = [(number * size + i) % len(self._clips) for i in range(size)]
        generators = [torch.Generator().manual_seed(number * size + i) for i in range(size)]
        latents, spoken, empty = self._encoded(chosen, generators)
        noise = editing.offset_noise(latents, 0.1, generators)
        noisy = model.schedule.corrupt(latents, noise, self._chain.levels[0])
        predict = self._guided(spoken, empty)
        edited = editing.run_chain(
            predict, noisy, model.schedule, self._chain, grad_on=self._grad_on, checkpoint=ways.nested
        )
        drawn = sample_segments(size, frames, SEGMENTS, generator=generators)
        if ways.decodes_all:
            every = [model.decode_frames(edited, torch.full((size, 1), frame)) for frame in range(frames)]
            pixels = torch.cat(every, 1)[torch.arange(size)[:, None], drawn]
        else:
            pixels = model.decode_frames(edited, drawn)
        names = [self._captions[i] for i in chosen for _ in range(SEGMENTS)]
        scores = self._judge.score(clamp_pixels(pixels, "hard").flatten(0, 1), names).unflatten(0, drawn.shape)
        loss = (1 - video_reward(scores, attenuation(drawn, frames))).mean()
        self._optimizer.zero_grad()
        self._judge.zero_grad()
        loss.backward()
        self._optimizer.step()
        if ways.averages:
            with torch.no_grad():
                for name, weight in model.denoiser.state_dict().items():
                    self._average[name].copy_(self._average[name] * 0.9999 + weight * (1 - 0.9999))

    def _encoded(self, chosen: list[int], generators: list[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of the clips, embeddings of their captions and of the empty one."""
        if self._ways.encodes_again:
            latents = self.model.encode_frames(self._clips[chosen]).sample(generators)
            names = [self._captions[i] for i in chosen]
            return latents, self.model.encode_prompts(names), self.model.encode_prompts([""])
        parts = [self._posteriors[i].sample([one]) for i, one in zip(chosen, generators, strict=True)]
        return torch.cat(parts), self._embeddings[chosen], self._embeddings[-1:]

    def _guided(self, spoken: Tensor, empty: Tensor) -> editing.Predict:
        model = self.model
        if not self._ways.two_calls:
            return model.guided(spoken, empty, GUIDANCE)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            unconditional = model.predict(latents, timestep, empty.expand_as(spoken))
            return unconditional + GUIDANCE * (model.predict(latents, timestep, spoken) - unconditional)

        return predict
