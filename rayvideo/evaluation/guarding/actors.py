"""Ray actors beside a training: some make and measure clips with the adapter they are handed, one makes rows of it."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import ray
import torch
from torch import Tensor

from rayvideo.data.manifest import Entry, read_manifest
from rayvideo.data.trimmed import Trimmed
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.adapter import put_on
from rayvideo.evaluation.captions import Prompt, elsewhere, guarded
from rayvideo.evaluation.diversity import coarse, diversity
from rayvideo.evaluation.findings import roles
from rayvideo.evaluation.generate import to_frames, to_pixels
from rayvideo.evaluation.guarding.measured import GUARDING, Measured, compare, pack, unpack
from rayvideo.evaluation.guarding.rows import Role
from rayvideo.evaluation.judge import judge_clips
from rayvideo.evaluation.paired import Floats
from rayvideo.evaluation.workers import Actors, Clips, ClipWorker, batched
from rayvideo.models.lora import adapter_disabled, unwrap
from rayvideo.recipe import Recipe, shareable
from rayvideo.serving.pool import RewardPool
from rayvideo.storage import is_file, join, read_bytes, write_bytes

BASE = "guards/base.npz"
"""What was measured of the base's clips and of real ones, below the run's folder."""


class Adapter(NamedTuple):
    """A trained adapter on its way to whoever makes clips with it."""

    step: int
    files: dict[str, bytes]
    """Those of its folder, by name."""


class GuardWorker(ClipWorker):
    """Makes and measures clips with an adapter that changes from call to call."""

    _worn: dict[str, bytes] | None = None

    def look(self, adapter: Adapter | None, prompts: Sequence[Prompt], steps: int, *embeddings: Trimmed) -> Clips:
        """Clips of `steps` steps, by the base if there is no adapter.

        Args:
            embeddings: Of the negative prompt and of the prompts' captions.
        """
        if adapter is not None and adapter.files != self._worn:
            self._wear(adapter.files)
        bare = adapter is None and self._worn is not None
        context: AbstractContextManager[None] = adapter_disabled(self._model.denoiser) if bare else nullcontext()
        with context:
            made = self._clips([one.caption for one in prompts], [one.seed for one in prompts], steps, embeddings)
        return self._measured(to_pixels(made))

    def _wear(self, files: dict[str, bytes]) -> None:
        model = self._model
        if self._worn is not None:
            model.denoiser = unwrap(model.denoiser).unload()
            self._worn = None
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            put_on(model, folder)
        self._worn = files


# As ClipActor: stateless between calls, since each call brings the adapter along.
GuardActor = ray.remote(max_restarts=-1, max_task_retries=2)(GuardWorker)


class Guards:
    """Has clips made and judged, and compares them with the base's.

    The base's clips are made once in a run's life: what was measured of them lies in the run's folder.

    Args:
        pools: Judges that training listens to, and those that it does not.
    """

    def __init__(self, recipe: Recipe, pools: Sequence[RewardPool], run_folder: str) -> None:
        self._recipe = recipe
        self._pools = pools
        self._run_folder = run_folder
        self._prompts = tuple(guarded(recipe))
        self._roles = cast(dict[str, Role], roles(recipe))
        self._actors = Actors(GuardActor, recipe, None)

    def prepare(self) -> None:
        """Measure the base, unless that is done."""
        _ = self._before

    def look(self, adapter: Adapter) -> dict[str, Any]:
        """The row, as JSON, of an adapter."""
        parts, real = self._before
        started = time.monotonic()
        tuned = self._measure(self._prompts, adapter)
        seconds = time.monotonic() - started
        steps = self._recipe.training.steps
        return compare(adapter.step, steps, parts["base"], parts["other"], tuned, self._roles, real, seconds).to_json()

    @cached_property
    def _before(self) -> tuple[dict[str, Measured], dict[str, Floats]]:
        """What was measured of the base under two choices of seeds, and the real clips' features of each set."""
        prompts = {"base": self._prompts, "other": tuple(elsewhere(self._prompts))}
        made_with = self._made_with()
        file = join(self._run_folder, BASE)
        if is_file(file) and (found := unpack(read_bytes(file), prompts, made_with)):
            return found
        parts = {part: self._measure(listed, None) for part, listed in prompts.items()}
        real = self._real()
        write_bytes(file, pack(parts, real, made_with))
        return parts, real

    def _made_with(self) -> str:
        """All that the base's figures depend on."""
        tree = shareable(self._recipe)
        options = tree["evaluation"]
        kept = ("sets", "steps", "guidance", "judges", "features")
        precision = self._recipe.training.precision
        known = [{name: options[name] for name in kept}, tree["model"]["path"], tree["data"], tree["reward"], precision]
        return json.dumps([known, self._prompts])

    def _measure(self, prompts: Sequence[Prompt], adapter: Adapter | None) -> Measured:
        options = self._recipe.evaluation
        self._actors.embed(prompt.caption for prompt in prompts)
        carried = ray.put(adapter)

        def look(actor: Any, batch: Sequence[Prompt]) -> Any:
            embeddings = self._actors.embeddings(prompt.caption for prompt in batch)
            return actor.look.remote(carried, batch, options.steps[0], *embeddings)

        columns: dict[str, list[float]] = defaultdict(list)
        features: list[Tensor] = []
        small: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        batches = batched(prompts, options.batch_size)
        for batch, clips in zip(batches, self._actors.spread(look, batches), strict=True):
            for pool in self._pools:
                scores = judge_clips(self._recipe, pool, clips.pixels, [prompt.caption for prompt in batch])
                for judge, raw in scores.items():
                    columns[judge] += raw.tolist()
            for metric in GUARDING:
                columns[metric] += [one[metric] for one in clips.measures]
            if clips.features is not None:
                features += clips.features.mean(1)
            for prompt, frames in zip(batch, to_frames(clips.pixels), strict=True):
                small[prompt.set, prompt.caption].append(coarse(frames))
        several = len(prompts) > len(small)
        return Measured(
            tuple(prompts),
            {metric: np.array(values) for metric, values in columns.items()},
            np.array([diversity(torch.stack(seeds)).item() for seeds in small.values()]) if several else None,
            torch.stack(features).double().numpy() if features else None,
        )

    def _real(self) -> dict[str, Floats]:
        """Caption set -> features of its real clips; those that can't be read are left out."""
        options = self._recipe.evaluation
        manifests = options.features.manifests(options.sets) if options.features else {}
        found: dict[str, Floats] = {}
        for manifest in dict.fromkeys(filter(None, manifests.values())):
            entries = read_manifest(manifest)
            batches = batched(entries, options.batch_size)

            def read(actor: Any, batch: Sequence[Entry]) -> Any:
                return actor.read.remote(batch)

            features = [
                clips.features.mean(1)
                for _, clips in self._actors.spread(read, batches)
                if clips is not None and clips.features is not None
            ]
            bad = len(entries) - sum(map(len, features))
            if bad > self._recipe.data.max_bad_fraction * len(entries):
                raise EvaluationError(
                    f"evaluation.features.reference {manifest}: {bad} of {len(entries)} clips can't be read, "
                    f"more than data.max_bad_fraction {self._recipe.data.max_bad_fraction:g}"
                )
            found[manifest] = torch.cat(features).double().numpy()
        return {name: found[manifest] for name, manifest in manifests.items() if manifest}


# It takes no time of a processor's but for statistics, so that it reserves nothing. Started again, it finds the base's
# figures in the run's folder.
GuardsActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=2)(Guards)
