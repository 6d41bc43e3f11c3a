"""Trials that start at once must not take from each other what each needs whole.

A trial starts its judges first and its workers later, and Ray knows nothing of the workers when it gives out CPUs to
judges: two trials could hold their judges and wait for each other's room for ever. So trials start one after another,
each when a placement group of all that it needs could be made, which also tells an autoscaler what to add.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group

from rayvideo.capacity import Bundle, Part, reservations
from rayvideo.recipe import Recipe
from rayvideo.serving.pool import NAMESPACE

EVERY_S = 0.5  # between looks at whose turn it is, and whether it is over
OUTSIDE = "DEFAULT"
"""Scheduling strategy of what a trial starts: not inside the placement group that Tune makes for the trial itself."""
HEAD = {"node:__internal_head__": 0.001}
"""What a trial's own processes reserve: next to nothing, of the cluster's head, where drivers of jobs run as well. Tune
asks for something, and what belongs to no other node takes nothing away from judges and workers."""


@ray.remote(num_cpus=0, resources=HEAD, scheduling_strategy=OUTSIDE)
class Token:
    """Whoever made the one of its name has the turn. It ends with the process that made it, however that ends."""


class Turn:
    """A `with` block that begins when it is this trial's turn and there is room for all of it.

    Args:
        name: The same in all trials on the cluster that may meet.
        wanted: What the trial needs, all at once.
        over: Asked now and then; once it says True, the next trial may start. The end of the block does so too.
    """

    def __init__(self, name: str, wanted: Sequence[Bundle], over: Callable[[], bool]) -> None:
        self._name = name
        self._wanted = wanted
        self._over = over
        self._left = Event()
        self._watch: Thread | None = None

    def __enter__(self) -> Turn:
        token = self._take()
        if self._wanted:
            group = placement_group([dict(bundle) for bundle in self._wanted])
            try:
                ray.get(group.ready())
            finally:
                remove_placement_group(group)
        self._watch = Thread(target=self._hand_on, args=(token,), daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._watch:
            self._watch.join()

    def _take(self) -> Any:
        while True:
            try:
                token = Token.options(name=self._name, namespace=NAMESPACE).remote()  # type: ignore[attr-defined]
                ray.get(token.__ray_ready__.remote())
                return token
            except (ValueError, RayError):  # another trial has it, or that one is ending
                time.sleep(EVERY_S)

    def _hand_on(self, token: Any) -> None:
        while not (self._left.wait(EVERY_S) or self._over()):
            pass
        ray.kill(token)


def needs(recipe: Recipe, parts: Sequence[Part]) -> list[Bundle]:
    """What must be there at once for `parts` of a recipe: each worker's and each judge's reservation.

    Encoders are left out: they work before the workers do.
    """
    reward, training, evaluation = recipe.reward, recipe.training, recipe.evaluation
    copies = {
        "training.…_per_worker": training.workers.min,
        **{f"reward.judges.{n}": judge.replicas.min for n, judge in enumerate(reward.judges)},
        **{f"evaluation.judges.{n}": judge.replicas.min for n, judge in enumerate(evaluation.judges)},
    }
    wanted = reservations(recipe, [part for part in parts if part != "data"])
    bundles = [
        ({name: amount for name, amount in bundle.items() if amount}, copies[option])
        for option, bundle in wanted.items()
    ]
    return [bundle for bundle, number in bundles for _ in range(number) if bundle]
