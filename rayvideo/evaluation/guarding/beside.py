"""Guards while a training runs: started before it, gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from rayvideo.evaluation.guarding.actors import GuardsActor
from rayvideo.progress import progress
from rayvideo.recipe import Recipe
from rayvideo.serving.pool import RewardPool


@contextmanager
def beside(recipe: Recipe, pool: RewardPool, run_folder: str) -> Iterator[Any]:
    """The actor `Guards`, which begins with the base's clips at once; None without `evaluation.guards`.

    Args:
        pool: The judges that training listens to. Those of `evaluation.judges` are started here.

    Raises:
        RewardError: naming the judge that can't be loaded.
    """
    options = recipe.evaluation
    if not options.guards:
        yield None
        return
    with ExitStack() as stack:
        pools = [pool]
        if options.judges:
            name = recipe.tracking.run_name
            pools.append(RewardPool(options.judges, name=name and f"{name}-guards"))
            stack.callback(pools[-1].close)
            with progress("loading held-out judges", len(options.judges), unit="judge") as bar:
                pools[-1].wait_until_ready(lambda _: bar.update())
        guards: Any = GuardsActor.remote(recipe, pools, run_folder)
        stack.callback(ray.kill, guards)  # and with it the actors that it started
        guards.prepare.remote()
        yield guards
