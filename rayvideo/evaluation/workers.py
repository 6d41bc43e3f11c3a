"""Ray actors that do an evaluation's heavy work: generate clips, read real ones, measure both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayActorError
from ray.util import ActorPool
from torch import Tensor
from typing_extensions import Self

from rayvideo.data.manifest import Entry
from rayvideo.data.trimmed import Trimmed
from rayvideo.data.video import ClipError, read_clip
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.captions import Prompt
from rayvideo.evaluation.generate import to_frames, to_pixels
from rayvideo.evaluation.generator import Generator
from rayvideo.evaluation.judge import judged_frames
from rayvideo.evaluation.metrics import FeatureExtractor, features_of, load_features, measure
from rayvideo.models.lora import adapter_disabled
from rayvideo.recipe import Recipe

Item = TypeVar("Item")
Variant = Literal["base", "tuned"]
CAPTIONS_PER_CALL = 8


@dataclass
class Clips:
    """Clips and what was measured on them."""

    pixels: npt.NDArray[np.uint8]
    """[N, F, H, W, 3]"""
    measures: list[dict[str, float]]
    """What `metrics.measure` says of each clip."""
    features: Tensor | None
    """Of the judged frames, [N, S, D]; None without an extractor."""


class ClipWorker(Generator):
    """Makes clips and measures them, with the feature extractor that it loads when it is first needed."""

    def generate(
        self, prompts: Sequence[Prompt], steps: int, *embeddings: Trimmed
    ) -> tuple[Sequence[Prompt], dict[Variant, Clips]]:
        """The prompts, and their clips of `steps` steps by the base and, with an adapter, by the tuned model.

        Args:
            embeddings: Of the negative prompt and of the prompts' captions.
        """
        variants: dict[Variant, AbstractContextManager[None]] = {"base": nullcontext()}
        if self._adapter is not None:
            variants = {"base": adapter_disabled(self._model.denoiser), "tuned": nullcontext()}
        captions, seeds = [prompt.caption for prompt in prompts], [prompt.seed for prompt in prompts]
        clips: dict[Variant, Clips] = {}
        for variant, context in variants.items():
            with context:
                generated = self._clips(captions, seeds, steps, embeddings)
            clips[variant] = self._measured(to_pixels(generated))
        return prompts, clips

    def read(self, entries: Sequence[Entry]) -> tuple[list[Entry], Clips | None]:
        """The real clips of a manifest that can be read, and their entries."""
        data = self._recipe.data
        good, pixels = [], []
        for entry in entries:
            try:
                pixels.append(read_clip(entry["video"], data.frames, data.fps, data.height, data.width))
                good.append(entry)
            except ClipError:
                continue  # counted by the caller
        return good, self._measured(np.stack(pixels)) if good else None

    def _measured(self, pixels: npt.NDArray[np.uint8]) -> Clips:
        features = None
        if self._features is not None:
            frames = judged_frames(pixels, self._recipe.reward.segments)
            with torch.no_grad():
                flat = features_of(self._features, frames.flatten(0, 1).to(self._device))
            features = flat.unflatten(0, frames.shape[:2])
        return Clips(pixels, [measure(clip) for clip in to_frames(pixels)], features)

    @cached_property
    def _features(self) -> FeatureExtractor | None:
        options = self._recipe.evaluation.features
        return load_features(options).to(self._device) if options else None


# Stateless between calls, so a call that dies with its process is made again with the same result. Not a decorator:
# Ray would then pickle the class by value, which cached_property's lock forbids before Python 3.12.
ClipActor = ray.remote(max_restarts=-1, max_task_retries=2)(ClipWorker)


class Actors:
    """Actors that share the work of one kind; use them in a `with` block, at whose end they are gone."""

    def __init__(self, kind: Any, recipe: Recipe, *args: object) -> None:
        """Start `evaluation.workers` actors: kind(recipe, *args)."""
        options = recipe.evaluation
        kind = kind.options(
            num_cpus=options.cpus_per_worker, num_gpus=options.gpus_per_worker, resources=options.resources
        )
        self._actors = [kind.remote(recipe, *args) for _ in range(options.workers)]
        self._negative = recipe.model.negative_prompt
        self._embedded: dict[str, ray.ObjectRef] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def spread(self, call: Callable[[Any, Any], Any], batches: Iterable[Any], *, ordered: bool = True) -> Iterator[Any]:
        """What `call(actor, batch)` gives for each batch, in the order of the batches or as they are done.

        Raises:
            EvaluationError: an actor died for good.
        """
        pool = ActorPool(self._actors)
        try:
            yield from pool.map(call, batches) if ordered else pool.map_unordered(call, batches)
        except RayActorError as error:
            raise EvaluationError(f"an actor that generates clips died: {error}") from error

    def embed(self, captions: Iterable[str]) -> None:
        """Embed the negative prompt and the captions; those that are already are not embedded again."""
        distinct = dict.fromkeys([self._negative, *captions])
        missing = batched([caption for caption in distinct if caption not in self._embedded], CAPTIONS_PER_CALL)
        done = self.spread(lambda actor, batch: actor.embed.remote(batch), missing)
        for batch, embeddings in zip(missing, done, strict=True):
            self._embedded |= {caption: ray.put(one) for caption, one in zip(batch, embeddings, strict=True)}

    def embeddings(self, captions: Iterable[str]) -> list[ray.ObjectRef]:
        """Of the negative prompt and of these captions, as `Generator` takes them."""
        return [self._embedded[caption] for caption in (self._negative, *captions)]


class Workers(Actors):
    """The workers of an evaluation."""

    def __init__(self, recipe: Recipe, adapter: str | None) -> None:
        super().__init__(ClipActor, recipe, adapter)
        self._batch_size = recipe.evaluation.batch_size

    def generate(
        self, prompts: Sequence[Prompt], steps: int
    ) -> Iterator[tuple[Sequence[Prompt], dict[Variant, Clips]]]:
        """Clips of `steps` steps batch by batch, in the order of the prompts."""
        self.embed(prompt.caption for prompt in prompts)

        def generate(actor: Any, batch: Sequence[Prompt]) -> Any:
            return actor.generate.remote(batch, steps, *self.embeddings(prompt.caption for prompt in batch))

        return self.spread(generate, batched(prompts, self._batch_size))

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[list[Entry], Clips | None]]:
        """The readable ones of real clips, batch by batch, in the order of the entries."""
        return self.spread(lambda actor, batch: actor.read.remote(batch), batched(entries, self._batch_size))


def batched(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """`items` in slices of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
