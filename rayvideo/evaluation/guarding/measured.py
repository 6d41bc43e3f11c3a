"""What was measured of clips, and the differences that a row holds: pure functions of arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from rayvideo.evaluation.captions import Prompt
from rayvideo.evaluation.guarding.kid import Distances
from rayvideo.evaluation.guarding.rows import WORSE, Figure, Role, Row
from rayvideo.evaluation.paired import Floats, Pairs, difference, margin

CHANCE = 0.05  # of an evaluation of which nothing is true: that any of its guards is beyond its margin


@dataclass(frozen=True)
class Measured:
    """What was measured of the clips of some prompts by one model."""

    prompts: tuple[Prompt, ...]
    """All seeds of a caption in a row."""
    figures: dict[str, Floats]
    """Judge or measure -> its value of each clip, [P]."""
    diversity: Floats | None
    """Of each caption, [C], in their order; None with a single seed."""
    features: Floats | None
    """Of each clip, [P, D]; None without `evaluation.features`."""

    def of_set(self, name: str) -> Measured:
        """The part that is of one caption set."""
        rows = np.array([prompt.set == name for prompt in self.prompts])
        captions = np.array([of_set == name for of_set, _ in self.captions])
        return Measured(
            tuple(prompt for prompt in self.prompts if prompt.set == name),
            {metric: values[rows] for metric, values in self.figures.items()},
            None if self.diversity is None else self.diversity[captions],
            None if self.features is None else self.features[rows],
        )

    @property
    def captions(self) -> list[tuple[str, str]]:
        """Set and caption, each once."""
        return list(dict.fromkeys((prompt.set, prompt.caption) for prompt in self.prompts))


def compare(
    step: int,
    steps: int,
    base: Measured,
    other: Measured,
    tuned: Measured,
    roles: Mapping[str, Role],
    real: Mapping[str, Floats],
    seconds: float = 0.0,
) -> Row:
    """The row of an optimizer step.

    Args:
        base: The base's clips.
        other: The base's clips of the same captions under other seeds, by which margins are calibrated.
        tuned: The tuned model's, of the prompts of `base`.
        roles: Of judges; the others of `figures` are measures.
        real: Caption set -> features [M, D] of its real clips; empty without features.
    """
    sets = dict.fromkeys(prompt.set for prompt in base.prompts)
    together = _figures(base, other, tuned, roles, np.concatenate([*real.values()]) if real else None)
    each = {
        name: _figures(base.of_set(name), other.of_set(name), tuned.of_set(name), roles, real.get(name))
        for name in sets
    }
    return Row(step, steps, together, each, seconds)


def _figures(
    base: Measured, other: Measured, tuned: Measured, roles: Mapping[str, Role], real: Floats | None
) -> dict[str, Figure]:
    columns = {metric: (base.figures[metric], other.figures[metric], tuned.figures[metric]) for metric in base.figures}
    captions = {metric: tuple(prompt.caption for prompt in base.prompts) for metric in columns}
    if base.diversity is not None and other.diversity is not None and tuned.diversity is not None:
        columns["diversity"] = (base.diversity, other.diversity, tuned.diversity)
        captions["diversity"] = tuple(caption for _, caption in base.captions)
    share = 2 * CHANCE / max(1, sum(roles.get(metric) != "training" for metric in columns) + (real is not None))
    found = {
        metric: _figure(roles.get(metric, "measure"), captions[metric], *values, share)
        for metric, values in columns.items()
    }
    if real is not None and len(base.captions) > 1:
        found["kid"] = _kid(base, other, tuned, real, share)
    return found


def _figure(role: Role, captions: tuple[str, ...], base: Floats, other: Floats, tuned: Floats, share: float) -> Figure:
    """
    Args:
        share: Of comparisons of the base with itself that may be beyond the margin, either way; half of it one way.
    """
    scale = float(base.mean() if role == "measure" else base.std(ddof=1) if len(base) > 1 else 0.0)
    unit = scale if scale > 0 else 1.0
    change = difference(Pairs(captions, base, tuned)).over(unit)
    beyond = _widened(margin(captions, base, other, share), share, len(set(captions)))
    return Figure(
        role,
        float(base.mean()),
        float(tuned.mean()),
        change.value,
        change.low,
        change.high,
        None if beyond is None else beyond / unit,
    )


def _kid(base: Measured, other: Measured, tuned: Measured, real: Floats, share: float) -> Figure:
    captions = [prompt.caption for prompt in base.prompts]
    one, two, three = (_features(each) for each in (base, other, tuned))
    change = Distances(captions, one, three, real).difference()
    beyond = _widened(Distances(captions, one, two, real).margin(share), share, len(set(captions)))
    return Figure("measure", 0.0, 0.0, change.value, change.low, change.high, beyond)


def _widened(margin: float | None, share: float, count: int) -> float | None:
    """A margin as far out as Student's t is beyond the normal distribution.

    The spread of chance is known from no more than `count` captions: without this, few of them and a small share give
    margins that are beyond their share by far.
    """
    return None if margin is None else margin * float(stdtrit(count, 1 - share / 2) / ndtri(1 - share / 2))


def _features(measured: Measured) -> Floats:
    if measured.features is None:
        raise ValueError("KID needs features of every clip")
    return measured.features


GUARDING = (*(metric for metric in WORSE if metric not in ("diversity", "kid")),)
"""Of the measures of a clip, those that guard."""


def pack(parts: Mapping[str, Measured], real: Mapping[str, Floats], made_with: str) -> bytes:
    """Everything as one file without pickled objects, with a text that says what it was made with."""
    arrays: dict[str, npt.NDArray[Any]] = {"made_with": np.array(made_with)}
    arrays |= {f"real/{name}": features for name, features in real.items()}
    for part, measured in parts.items():
        arrays |= {f"{part}/figures/{metric}": values for metric, values in measured.figures.items()}
        for name in ("diversity", "features"):
            if (values := getattr(measured, name)) is not None:
                arrays[f"{part}/{name}"] = values
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def unpack(
    content: bytes, prompts: Mapping[str, tuple[Prompt, ...]], made_with: str
) -> tuple[dict[str, Measured], dict[str, Floats]] | None:
    """What `pack` wrote; None if it was made with something else.

    Args:
        prompts: Of each part, whose order the arrays have.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        if str(arrays["made_with"]) != made_with:
            return None
        real = {name.removeprefix("real/"): arrays[name] for name in arrays if name.startswith("real/")}
        parts = {}
        for part, listed in prompts.items():
            start = f"{part}/figures/"
            figures = {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}
            diversity, features = (arrays.get(f"{part}/{name}") for name in ("diversity", "features"))
            parts[part] = Measured(listed, figures, diversity, features)
    return parts, real
