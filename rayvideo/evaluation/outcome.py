"""The one line above a comparison: is the tuned model better, and if not, what is it? Pure, of its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from rayvideo.evaluation.compare import Chain, Comparison
from rayvideo.evaluation.findings import FLICKER_RISE, JUDGE_FALL, MOTION_CHANGE, roles
from rayvideo.evaluation.paired import MIN_CAPTIONS, Estimate, Pairs, change, difference
from rayvideo.recipe import Recipe

Kind = Literal["better", "no different", "worse", "hacked", "unproven"]


class Outcome(NamedTuple):
    """What a comparison comes to."""

    kind: Kind
    """better: a held-out judge's gain is beyond chance and nothing broke. hacked: the judges that trained it are
    happier, and something broke: a held-out judge fell, motion or flicker went beyond what is usual, or clips away
    from the real ones. worse: something broke and they are not even happier. no different: neither. unproven: there is
    nobody to ask but those judges, or too few captions."""
    reason: str
    """One sentence with the figures."""


def outcome(recipe: Recipe, comparison: Comparison) -> Outcome:
    """What is to be said of all clips of the first number of steps, all sets together."""
    if comparison.unchanged:
        return Outcome("no different", "The adapter changes no clip.")
    chain, judges = comparison.chains[0], roles(recipe)
    captions = {(row["set"], row["caption"]) for row in chain.rows}
    if len(captions) < MIN_CAPTIONS:
        return Outcome("unproven", f"Of {len(captions)} captions nothing can be said; give it {MIN_CAPTIONS} or more.")
    gains = {judge: pooled_gain(chain, judge) for judge in judges}
    training = {judge: gain for judge, gain in gains.items() if judges[judge] == "training"}
    held_out = {judge: gain for judge, gain in gains.items() if judges[judge] == "held-out"}
    happier = any(_above(gain, 0) for gain in training.values())
    said = _listed(training)
    broken = [*_fallen(held_out), *_measured(chain)]
    if broken:
        if happier:
            return Outcome("hacked", f"The judges that trained it gained ({said}), but {', '.join(broken)}.")
        return Outcome("worse", f"It has {', '.join(broken)}; of the judges that trained it {said}.")
    if not held_out:
        return Outcome("unproven", f"Only the judges that trained it were asked ({said}): add evaluation.judges.")
    risen = {judge: gain for judge, gain in held_out.items() if _above(gain, 0)}
    if risen:
        return Outcome("better", f"Judges that never trained it gained ({_listed(risen)}), and nothing broke.")
    return Outcome("no different", f"What judges that never trained it gained may be chance: {_listed(held_out)}.")


def pooled_gain(chain: Chain, judge: str) -> Estimate:
    """A judge's mean gain over the clips of all sets, each in standard deviations σ of its own set's base clips."""

    def in_sigma(name: str) -> Pairs:
        pairs, spread = chain.pairs(name, judge), chain.sets[name]["base"][judge]["std"] or 1.0
        return Pairs(pairs.captions, pairs.base / spread, pairs.tuned / spread)

    return difference(_joined({name: in_sigma(name) for name in chain.sets}))


def pooled_change(chain: Chain, measure: str) -> Estimate | None:
    """A measure's change over the clips of all sets, as a share of the base's; None where that is 0."""
    return change(_joined({name: chain.pairs(name, measure) for name in chain.sets}))


def _joined(sets: Mapping[str, Pairs]) -> Pairs:
    captions = tuple(f"{name}: {caption}" for name, pairs in sets.items() for caption in pairs.captions)
    base, tuned = (np.concatenate([pairs[variant] for pairs in sets.values()]) for variant in (1, 2))
    return Pairs(captions, base, tuned)


def _fallen(held_out: Mapping[str, Estimate]) -> Iterator[str]:
    for judge, gain in held_out.items():
        if _below(gain, 0) and gain.value < -JUDGE_FALL:
            yield f"{judge} fell by {-gain.value:.2f} σ"


def _measured(chain: Chain) -> Iterator[str]:
    motion, flicker = pooled_change(chain, "motion"), pooled_change(chain, "flicker")
    if motion and abs(motion.value) > MOTION_CHANGE and (_above(motion, 0) or _below(motion, 0)):
        yield f"motion {'rose' if motion.value > 0 else 'fell'} by {abs(motion.value):.0%}"
    if flicker and flicker.value > FLICKER_RISE and _above(flicker, 0):
        yield f"flicker rose by {flicker.value:.0%}"
    kids = [(each["base"]["kid"], each["tuned"]["kid"]) for each in chain.sets.values() if "kid" in each["base"]]
    if kids:
        risen = np.mean([tuned["mean"] - base["mean"] for base, tuned in kids])
        if risen > np.mean([base["std"] for base, _ in kids]):
            yield f"the distance to real clips (KID) rose by {risen:.3f}"


def _above(estimate: Estimate, bound: float) -> bool:
    return estimate.low is not None and estimate.low > bound


def _below(estimate: Estimate, bound: float) -> bool:
    return estimate.high is not None and estimate.high < bound


def _listed(gains: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{judge} {gain.text('+.2f', ' σ')}" for judge, gain in gains.items())
