"""Base against tuned model: the same captions, seeds and numbers of steps, judged, measured and summed up."""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from rayvideo.data.manifest import read_manifest
from rayvideo.data.video import write_clip
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.adapter import check_generator
from rayvideo.evaluation.captions import Prompt, file_name, prompts, shown
from rayvideo.evaluation.heldout import check_held_out
from rayvideo.evaluation.judge import judge_clips, judged_frames, sights
from rayvideo.evaluation.metrics import check_measurable, kid, resolve_features
from rayvideo.evaluation.paired import Estimate, Pairs, difference, pairs_of
from rayvideo.evaluation.workers import Clips, Variant, Workers
from rayvideo.progress import progress
from rayvideo.recipe import Recipe
from rayvideo.rewards import check_judge
from rayvideo.serving.pool import RewardPool

logger = logging.getLogger(__name__)

Figures = dict[str, dict[str, float]]
"""Metric -> {"mean", "std", "n"}: over clips (std of the sample), for "kid" over random draws of frames."""


@dataclass
class Preview:
    """The clips of one prompt that people look at."""

    prompt: Prompt
    name: str
    """Unique, and fit for a file name."""
    pixels: dict[Variant, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """[F, H, W, 3]"""
    files: dict[Variant, str] = field(default_factory=dict)
    """Paths below the evaluation's folder."""


@dataclass
class Chain:
    """What was found of clips that were made in one number of steps."""

    steps: int
    """Steps D of the chain."""
    rows: list[dict[str, Any]]
    """One per clip: set, caption, seed, steps, variant, file, every score and measure."""
    sets: dict[str, dict[Variant, Figures]]

    def gain(self, metric: str) -> dict[str, float | None]:
        """Set -> (mean of tuned - mean of base) / standard deviation of the base's clips; None if that is 0."""
        gains: dict[str, float | None] = {}
        for name, figures in self.sets.items():
            base, tuned = figures["base"][metric], figures["tuned"][metric]
            gains[name] = (tuned["mean"] - base["mean"]) / base["std"] if base["std"] else None
        return gains

    def paired_gain(self, metric: str) -> dict[str, Estimate | None]:
        """The same with its interval over captions, for the standard deviation as it is."""
        spreads = {name: figures["base"][metric]["std"] for name, figures in self.sets.items()}
        return {
            name: difference(self.pairs(name, metric)).over(spread) if spread else None
            for name, spread in spreads.items()
        }

    def wins(self, metric: str) -> dict[str, float]:
        """Set -> share of prompts whose tuned clip scores higher than its base clip."""
        paired = {name: self.pairs(name, metric) for name in self.sets}
        return {name: float(np.mean(each.tuned > each.base)) for name, each in paired.items()}

    def pairs(self, name: str, metric: str) -> Pairs:
        """A metric of a set's clips, base and tuned of one caption and seed beside each other."""
        return pairs_of((row for row in self.rows if row["set"] == name), metric)


@dataclass
class Comparison:
    """What an evaluation found."""

    chains: list[Chain]
    """One for each of `evaluation.steps`, in their order."""
    has_tuned: bool
    reference: Figures
    """The same figures of the real clips; empty without `evaluation.features`."""
    unreadable: int
    """Real clips that could not be read."""
    previews: list[Preview]
    """Of the first chain."""
    seconds: float
    unchanged: bool = False
    """Whether every tuned clip is the base's, bit for bit."""


def check(recipe: Recipe, adapter: str | None) -> None:
    """Refuse what would fail later, before anything is started.

    Raises:
        EvaluationError: clips are too short or too small to measure, there are no captions, no adapter where one should
            be, or no such class as the features'.
        ManifestError: captions or reference clips can't be read.
        RecipeError: a judge's files or options can't be right, it asks for longer clips, or it both trains and reports.
        ModelError: the model is incomplete, or the adapter is not of it or untrained.
    """
    for section, judges in (("reward", recipe.reward.judges), ("evaluation", recipe.evaluation.judges)):
        for number, judge in enumerate(judges):
            check_judge(f"{section}.judges.{number}", judge, recipe.data)
    if recipe.evaluation.features:
        resolve_features(recipe.evaluation.features)
    check_held_out(recipe)
    check_measurable(recipe.data)
    wanted = prompts(recipe)
    if not wanted:
        raise EvaluationError("evaluation.sets is empty: name files of captions there or with --captions NAME=FILE")
    for name, manifest in _references(recipe).items():
        if manifest is None:
            raise EvaluationError(f"evaluation.features.reference lacks a manifest for the caption set {name!r}")
        if min(len(read_manifest(manifest)), sum(prompt.set == name for prompt in wanted)) < 2:
            raise EvaluationError(
                f"caption set {name!r}: KID compares at least two clips with two real ones; give the set more captions "
                "or seeds and its reference more clips, or leave evaluation.features out"
            )
    check_generator(recipe, adapter)


def evaluate(recipe: Recipe, adapter: str | None, folder: Path) -> Comparison:
    """Generate, judge and measure the clips of every prompt; needs a running Ray.

    Writes one row a clip to `folder`/clips.parquet, and the clips that people look at to `folder`/report/clips.

    Args:
        adapter: Folder or URI of the trained adapter; None evaluates the base alone.

    Raises:
        EvaluationError: also when more than `data.max_bad_fraction` of the reference clips can't be read.
        RewardError: naming the judge that fails.
    """
    started = time.monotonic()
    everything, lengths = prompts(recipe), recipe.evaluation.steps
    previews = {prompt: Preview(prompt, file_name(i, prompt)) for i, prompt in enumerate(shown(recipe))}
    chains: list[Chain] = []
    unchanged = adapter is not None
    pool = RewardPool([*recipe.reward.judges, *recipe.evaluation.judges])
    try:
        with Workers(recipe, adapter) as workers:
            with progress("loading judges", len(pool.judges), unit="judge") as bar:
                pool.wait_until_ready(lambda _: bar.update())
            real_rows, real_features, unreadable = _read_reference(recipe, workers, pool)
            with progress("generating and judging", len(everything) * len(lengths), unit="caption") as bar:
                for steps in lengths:
                    rows: list[dict[str, Any]] = []
                    features: dict[tuple[str, Variant], list[Tensor]] = defaultdict(list)
                    for clip in _judged(recipe, workers, pool, everything, steps, bar):
                        prompt, variant, file = clip.prompt, clip.variant, None
                        unchanged = unchanged and clip.unchanged
                        if steps == lengths[0] and prompt in previews:
                            file = _keep(previews[prompt], variant, clip.pixels, folder, recipe.data.fps)
                        key = {**prompt._asdict(), "steps": steps, "variant": variant, "file": file}
                        rows.append({**key, **clip.figures})
                        if clip.features is not None:
                            features[prompt.set, variant].append(clip.features)
                    chains.append(Chain(steps, rows, _summed_up(rows, features, real_features, recipe.seed)))
    finally:
        pool.close()
    pq.write_table(pa.Table.from_pylist([row for chain in chains for row in chain.rows]), folder / "clips.parquet")
    seconds = time.monotonic() - started
    shown_clips = list(previews.values())
    return Comparison(chains, adapter is not None, _figures(real_rows), unreadable, shown_clips, seconds, unchanged)


class _Clip(NamedTuple):
    prompt: Prompt
    variant: Variant
    pixels: npt.NDArray[np.uint8]
    figures: dict[str, float]
    features: Tensor | None
    unchanged: bool
    """Whether it is the base's clip of this prompt, bit for bit."""


def _judged(
    recipe: Recipe, workers: Workers, pool: RewardPool, prompts: Sequence[Prompt], steps: int, bar: tqdm
) -> Iterator[_Clip]:
    """The clips of every prompt, with their scores and measures."""
    bar.set_description_str(f"generating and judging {prompts[0].set}", refresh=False)
    for number, (batch, clips) in enumerate(workers.generate(prompts, steps)):
        bar.set_description_str(f"generating and judging {batch[-1].set}", refresh=False)
        if number == 0:
            shown_first = judged_frames(clips["base"].pixels, recipe.reward.segments)
            for judge, sight in sights(recipe, pool, shown_first).items():
                logger.info("judge %r sees %s", judge, sight)
        for variant, made in clips.items():
            figures = _score(recipe, pool, made, [prompt.caption for prompt in batch])
            for i, prompt in enumerate(batch):
                features = None if made.features is None else made.features[i]
                unchanged = np.array_equal(made.pixels[i], clips["base"].pixels[i])
                yield _Clip(prompt, variant, made.pixels[i], figures[i], features, unchanged)
        bar.update(len(batch))


def _summed_up(
    rows: Sequence[dict[str, Any]],
    features: Mapping[tuple[str, Variant], list[Tensor]],
    real_features: Mapping[str, list[Tensor]],
    seed: int,
) -> dict[str, dict[Variant, Figures]]:
    sets: dict[str, dict[Variant, Figures]] = defaultdict(dict)
    for name, variant in dict.fromkeys((row["set"], row["variant"]) for row in rows):
        sets[name][variant] = _figures(row for row in rows if (row["set"], row["variant"]) == (name, variant))
        if real_features:
            draws = kid(_by_clip(features[name, variant]), _by_clip(real_features[name]), seed=seed)
            sets[name][variant]["kid"] = _spread_of(draws.tolist())
    return dict(sets)


def _by_clip(features: Sequence[Tensor]) -> Tensor:
    """One row a clip, [N, D], of each one's features [S, D]: frames of one clip are no independent samples."""
    return torch.stack([frames.mean(0) for frames in features])


def _references(recipe: Recipe) -> dict[str, str | None]:
    options = recipe.evaluation
    return options.features.manifests(options.sets) if options.features else {}


def _read_reference(
    recipe: Recipe, workers: Workers, pool: RewardPool
) -> tuple[list[dict[str, Any]], dict[str, list[Tensor]], int]:
    """Scores and measures of each real clip, the features of each caption set's, and how many can't be read."""
    rows: list[dict[str, Any]] = []
    manifests = _references(recipe)
    if not manifests:
        return [], {}, 0
    entries = {manifest: read_manifest(manifest) for manifest in dict.fromkeys(manifests.values()) if manifest}
    found: dict[str, list[Tensor]] = {manifest: [] for manifest in entries}
    with progress("reading reference clips", sum(map(len, entries.values()))) as bar:
        for manifest, listed in entries.items():
            for good, clips in workers.read(listed):
                if clips is not None and clips.features is not None:
                    rows += _score(recipe, pool, clips, [entry["caption"] for entry in good])
                    found[manifest] += clips.features
                bar.update(len(good))
            bad = len(listed) - len(found[manifest])
            if bad > recipe.data.max_bad_fraction * len(listed):
                raise EvaluationError(
                    f"evaluation.features.reference {manifest}: {bad} of {len(listed)} clips can't be read, "
                    f"more than data.max_bad_fraction {recipe.data.max_bad_fraction:g}"
                )
    features = {name: found[manifest] for name, manifest in manifests.items() if manifest}
    return rows, features, sum(map(len, entries.values())) - len(rows)


def _score(recipe: Recipe, pool: RewardPool, clips: Clips, captions: Sequence[str]) -> list[dict[str, float]]:
    scores = judge_clips(recipe, pool, clips.pixels, captions)
    return [
        {**{judge: raw[i].item() for judge, raw in scores.items()}, **measures}
        for i, measures in enumerate(clips.measures)
    ]


def _figures(rows: Iterable[dict[str, Any]]) -> Figures:
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                columns[name].append(value)
    return {name: _spread_of(values) for name, values in columns.items()}


def _spread_of(values: Sequence[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "n": len(values)}


def _keep(preview: Preview, variant: Variant, pixels: npt.NDArray[np.uint8], folder: Path, fps: float) -> str:
    """Write a clip that people look at, and return its file."""
    preview.pixels[variant] = pixels
    preview.files[variant] = file = f"report/clips/{preview.name}-{variant}.mp4"
    write_clip(folder / file, pixels, fps)
    return file
