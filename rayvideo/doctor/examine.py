"""Runs every check, where training and evaluation would run: on a worker's resources, beside the judges' actors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from rayvideo.doctor import microbatch, remote
from rayvideo.doctor.finding import Finding, attempt, failed
from rayvideo.doctor.judge import examine_judge, from_files
from rayvideo.doctor.samples import Samples, sample
from rayvideo.errors import UserError
from rayvideo.recipe import Recipe
from rayvideo.rewards import load_reward
from rayvideo.sections import Judge
from rayvideo.serving.pool import RewardPool
from rayvideo.training import objectives

TRAINING = "training"
JUDGES = "judges"


def examine(recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """All findings of a recipe that passed `preflight.check`; needs a running Ray. `say` hears what is going on.

    First the judges that train and a step, then, when their actors are gone, the judges that only report: at no time
    more resources are taken than training or evaluation would.

    Raises:
        UserError: clips or the model can't be read.
    """
    options = recipe.training
    found = _run(train_phase, recipe, recipe.reward.judges, options.cpus_per_worker, options.gpus_per_worker, say)
    samples = next(one for one in found if isinstance(one, Samples))
    if recipe.evaluation.judges:
        other = recipe.evaluation
        found += _run(report_phase, recipe, other.judges, other.cpus_per_worker, other.gpus_per_worker, say, samples)
    return [one for one in found if isinstance(one, Finding)]


def _run(
    phase: Callable[..., Iterator[object]],
    recipe: Recipe,
    judges: Sequence[Judge],
    cpus: float,
    gpus: float,
    say: Callable[[str], None],
    *arguments: object,
) -> list[Samples | Finding]:
    """What `phase` finds, after a first word on its device, in a process with these resources.

    It is given recipe, pool and `arguments`.
    """
    found: list[Samples | Finding] = []
    pool = RewardPool(judges)
    try:
        say("starting judges and a worker")
        stream = ray.remote(phase).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        running = stream.remote(recipe, pool, *arguments)
        patience = max(judge.timeout_s for judge in judges)
        if not ray.wait([running], timeout=patience)[0]:
            raise UserError(f"no worker with {cpus:g} CPUs and {gpus:g} GPUs was free within {patience:g} s")
        say(f"worker on {ray.get(next(running))}")
        for reference in running:
            found.append(ray.get(reference))
            if isinstance(found[-1], Finding):
                say(f"{found[-1].about}: {found[-1].name}")
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    except RayError as error:
        if not found:
            raise
        mend = f"if it ran out of memory: {microbatch.MEMORY_MEND}"
        found.append(Finding("process", False, f"died: {str(error).splitlines()[0]}", mend, about="worker"))
    finally:
        pool.close()
    return found


def train_phase(recipe: Recipe, pool: RewardPool) -> Iterator[str | Samples | Finding]:
    """The judges that train, and a step that they judge."""
    yield str(device := _device())
    samples, table = sample(recipe, device)
    yield samples
    healthy = yield from _judges(recipe, pool, samples, device, trains=True)
    if not healthy:
        yield Finding("one step", None, "a judge does not answer, or has no gradient", about=TRAINING)
        return
    try:
        for finding in microbatch.examine(recipe, table, pool, device):
            yield replace(finding, about=TRAINING)
    except Exception as error:
        yield replace(failed("one step", error), about=TRAINING)


def report_phase(recipe: Recipe, pool: RewardPool, samples: Samples) -> Iterator[str | Finding]:
    """The judges that only report."""
    yield str(device := _device())
    yield from _judges(recipe, pool, samples, device, trains=False)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _judges(
    recipe: Recipe, pool: RewardPool, samples: Samples, device: torch.device, *, trains: bool
) -> Generator[Finding, None, bool]:
    """Each judge of the pool in this process, then all in their actors; returns whether a step can be tried."""
    learns = trains and objectives.resolve(recipe.training.objective).needs_gradient
    here: dict[str, remote.Local] = {}
    for judge in pool.judges:
        try:
            reward = load_reward(judge, device)
            yield replace(attempt("weights from files", from_files, judge, reward), about=judge.name)
            found = []
            for finding in examine_judge(judge, reward, samples, recipe.seed, device):
                found.append(finding)
                yield replace(finding, about=judge.name)
            if all(one.ok for one in found if one.name in ("answers", *["gradient"] * learns)):
                here[judge.name] = remote.local(samples.asked(reward, device), learns)
        except Exception as error:
            yield replace(failed("loads", error), about=judge.name)
    yield replace(attempt("actors", remote.loaded, pool), about=JUDGES)
    if len(here) < len(pool.judges):
        yield Finding("actor against local", None, "a judge does not answer, or has no gradient", about=JUDGES)
        return False
    compared = attempt("actor against local", remote.compare, pool, here, learns)
    yield replace(compared, about=JUDGES)
    if learns and len(here) > 1:
        yield replace(attempt("weights", remote.weights, pool.judges, here), about=JUDGES)
    return bool(compared.ok)
