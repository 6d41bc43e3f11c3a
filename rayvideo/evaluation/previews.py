"""Base against tuned clips while training goes on: a few captions, made by the training workers themselves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rayvideo.data.trimmed import Trimmed
from rayvideo.data.video import write_clip
from rayvideo.evaluation.captions import Prompt, file_name, shown
from rayvideo.evaluation.generate import embed_captions, generate_clips, to_frames, to_pixels
from rayvideo.evaluation.judge import judge_clips
from rayvideo.evaluation.metrics import flicker, motion
from rayvideo.models import VideoModel, load_model
from rayvideo.models.lora import adapter_disabled
from rayvideo.recipe import Recipe
from rayvideo.serving.pool import RewardPool
from rayvideo.storage import join
from rayvideo.tracking import Tracker
from rayvideo.tracking.charts import base_chart, clip_chart, strip_key

logger = logging.getLogger(__name__)

MIN_HEIGHT = 256  # pixels of a clip in a player

Pixels = npt.NDArray[np.uint8]  # [N, F, H, W, 3]


def embed_shown(recipe: Recipe) -> dict[str, Trimmed]:
    """Caption -> embedding of all captions that are shown, and of the negative prompt, as it is sent to workers.

    Loads the text tower for it and lets it go.
    """
    captions = [prompt.caption for prompt in shown(recipe)]
    if not captions:
        return {}
    logger.info("embedding %d captions of previews", len(captions))
    model = load_model(recipe.model.path, family=recipe.model.family, parts=("text",))
    embeddings = embed_captions(model, captions, recipe.model.negative_prompt)
    return {caption: Trimmed.of(embedding.float().numpy()) for caption, embedding in embeddings.items()}


class Previews:
    """Clips of the same captions and seeds at every comparison; every rank must call `show` equally often.

    Each rank makes an equal share with equally many forward passes, as ZeRO-3 needs it, and rank 0 logs them all:
    strips, mp4s with the base's clip on the left (also under `run_folder`/samples), and figures per set.

    Args:
        model: With denoiser (or the engine around it) and VAE; the adapter is switched off for the base's clips.
        embeddings: What `embed_shown` gave.
        pool: Judges the clips.
        held_out: The judges of `evaluation.judges`, where they are to judge them too.
        tracker: Of the run, on rank 0; other ranks need none.
        told: Called with what is made, and how many clips of how many are there.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: VideoModel,
        embeddings: Mapping[str, Trimmed],
        pool: RewardPool,
        run_folder: str,
        tracker: Tracker | None,
        told: Callable[[str, int, int], None] | None = None,
        *,
        held_out: RewardPool | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._recipe = recipe
        self._model = model
        self._embeddings = {caption: torch.from_numpy(one.whole()) for caption, one in embeddings.items()}
        self._pools = [held_out, pool] if held_out else [pool]
        self._held_out = {judge.name for judge in held_out.judges} if held_out else set()
        self._run_folder = run_folder
        self._tracker = tracker
        self._told = told
        self._rank = rank
        self._world_size = world_size
        self._prompts = shown(recipe)
        self._base: Pixels | None = None
        self.means: dict[str, list[float]] = {}
        """Measure -> its means over all sets at the newest step that was shown: base, tuned. On rank 0."""

    def show(self, step: int) -> dict[str, float]:
        """Make the tuned clips and, the first time, the base's; on rank 0 log both and return the figures by chart."""
        if not self._prompts:
            return {}
        if self._base is None:
            with adapter_disabled(self._model.denoiser):
                self._base = self._generate("previews of the base")
        # A fresh adapter's B is 0, so that the tuned model is the base.
        fresh = step == 0 and self._recipe.model.lora.start is None
        tuned = self._base if fresh else self._generate(f"previews of step {step}")
        if self._tracker is None:
            return {}
        if not fresh and np.array_equal(self._base, tuned):
            logger.warning(
                "step %d: the adapter changes nothing: every clip that is shown is the base's, bit for bit", step
            )
        folder = f"samples/step-{step:06d}"
        for number, (prompt, base, after) in enumerate(zip(self._prompts, self._base, tuned, strict=True)):
            if self._logged(prompt, step):
                continue
            side_by_side = _enlarged(np.concatenate([base, after], axis=2))
            file = f"{folder}/{file_name(number, prompt)}.mp4"
            key = strip_key("preview", prompt.set, prompt.caption)
            self._tracker.strip(key, step, base, after, prompt.caption)
            self._tracker.video(file, side_by_side)
            write_clip(join(self._run_folder, file), side_by_side)
        of_base, of_tuned = self._figures(self._base), self._figures(tuned)
        self.means = {
            name: [fmean(v for (_, metric), v in side.items() if metric == name) for side in (of_base, of_tuned)]
            for name in dict.fromkeys(metric for _, metric in of_base)
        }
        figures = {
            **{base_chart("preview", *what): value for what, value in of_base.items()},
            **{clip_chart("preview", *what, held_out=self._held_out): value for what, value in of_tuned.items()},
        }
        self._tracker.log(step, figures)
        return figures

    def lacks(self, step: int) -> bool:
        """Whether MLflow has not all of a step's previews yet; every rank must ask."""
        lacking = self._tracker is not None and not all(self._logged(prompt, step) for prompt in self._prompts)
        if self._world_size == 1:
            return lacking
        answer = torch.tensor(lacking, dtype=torch.uint8, device=self._model.device)
        dist.broadcast(answer, 0)
        return bool(answer)

    def _logged(self, prompt: Prompt, step: int) -> bool:
        tracker = cast(Tracker, self._tracker)
        # A figure: they are the last to be logged.
        return tracker.logged(clip_chart("preview", prompt.set, "motion"), step)

    def _generate(self, what: str) -> Pixels:
        """Every prompt's clip, on every rank."""

        def told(clips: int) -> None:
            if self._told:  # the ranks keep pace
                self._told(what, min(clips * self._world_size, len(self._prompts)), len(self._prompts))

        told(0)
        share = math.ceil(len(self._prompts) / self._world_size)
        # Ranks without a prompt of their own repeat the first, so that all run the same forward passes.
        padded = self._prompts + [self._prompts[0]] * (share * self._world_size - len(self._prompts))
        chosen = padded[self._rank * share : (self._rank + 1) * share]
        options, data = self._recipe.evaluation, self._recipe.data
        clips = generate_clips(
            self._model,
            [prompt.caption for prompt in chosen],
            [prompt.seed for prompt in chosen],
            steps=options.steps[0],
            guidance=options.guidance,
            negative_prompt=self._recipe.model.negative_prompt,
            frames=data.frames,
            height=data.height,
            width=data.width,
            batch_size=options.batch_size,
            tiled=self._recipe.model.tiled_decoding,
            embeddings=self._embeddings,
            told=told,
        )
        pixels = torch.from_numpy(to_pixels(clips)).to(self._model.device)
        shares = [pixels]
        if self._world_size > 1:
            shares = [torch.empty_like(pixels) for _ in range(self._world_size)]
            dist.all_gather(shares, pixels)
        return torch.cat(shares)[: len(self._prompts)].cpu().numpy()

    def _figures(self, clips: Pixels) -> dict[tuple[str, str], float]:
        """(Set, metric) -> mean over the set's clips: raw scores of the pools' judges, motion and flicker."""
        captions = [prompt.caption for prompt in self._prompts]
        columns = {
            judge: raw.tolist()
            for pool in self._pools
            for judge, raw in judge_clips(self._recipe, pool, clips, captions).items()
        }
        frames = to_frames(clips)
        columns |= {"motion": [motion(x).item() for x in frames], "flicker": [flicker(x).item() for x in frames]}
        return {
            (name, metric): fmean(
                value for value, prompt in zip(values, self._prompts, strict=True) if prompt.set == name
            )
            for name in dict.fromkeys(prompt.set for prompt in self._prompts)
            for metric, values in columns.items()
        }


def _enlarged(clip: Pixels) -> Pixels:
    """Frames [F, H, W, 3] as large as players show them well; MLflow's does not scale."""
    factor = max(1, MIN_HEIGHT // clip.shape[1])
    return clip.repeat(factor, axis=1).repeat(factor, axis=2)
