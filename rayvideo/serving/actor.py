"""One frozen judge in an actor of its own: a replica. Without state between calls, so any replica may repeat a call."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import ray

from rayvideo.importing import quickly
from rayvideo.sections import Judge, Precision
from rayvideo.serving.wire import Outcome, Pixels, Times, View, decode, encode, returns_as

# torch and the judge's libraries are imported in the replica alone: the router, which imports this file, needs none.


@ray.remote(concurrency_groups={"watch": 1})
class RewardActor:
    """Holds one reward model. The router starts it, and another one when it dies."""

    @ray.method(concurrency_group="watch")
    def live(self) -> None:
        """Never return: the call fails when the process dies, which the router waits for."""
        threading.Event().wait()

    def load(self, judge: Judge) -> tuple[str | None, View | None]:
        """Load the judge. Returns what went wrong, or else what it looks at."""
        with quickly():
            import torch

            from rayvideo.errors import UserError
            from rayvideo.rewards.loading import load_reward
            from rayvideo.serving.judging import view_of

        # Numbers depend on the count of threads, in the last bits.
        torch.set_num_threads(max(1, math.floor(judge.num_cpus)))
        self._device = torch.device("cuda" if judge.num_gpus else "cpu")
        if judge.num_gpus:  # some of CUDA's kernels add up in any order unless told
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            self._reward = load_reward(judge, self._device)
        except UserError as error:
            return str(error), None
        except Exception:
            return f"judge {judge.name!r} can't be loaded:\n{traceback.format_exc().rstrip()}", None
        return None, view_of(self._reward)

    def judge(
        self,
        prompts: Sequence[Sequence[str]],
        gradient: bool,
        wire: Precision,
        micro_batch: int,
        times: Times | None,
        *items: Pixels,
    ) -> Any:
        """Judge the frames, or clips with frames at these times, of one or several requests together.

        Returns:
            An `Outcome`, then for each request (scores [N], gradients [N, ...] or None), or None where it failed.
        """
        import torch

        from rayvideo.rewards.base import RewardError
        from rayvideo.serving.judging import check_rows, is_out_of_memory, judge_rows

        nothing = [None] * len(items)
        rows = torch.cat([decode(each) for each in items])
        captions = [caption for each in prompts for caption in each]
        try:
            scores, slopes = judge_rows(self._reward, rows, captions, gradient, self._device, micro_batch, times)
        except RewardError as error:
            return Outcome(failure=str(error)), *nothing
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            failure = f"judge {self._reward.name!r} is out of memory: {error}"
            return Outcome(failure=failure, out_of_memory=True), *nothing
        errors: list[str | None] = []
        results: list[Any] = []
        start = 0
        for names in prompts:
            part = slice(start, start := start + len(names))
            slope = None if slopes is None else slopes[part]
            try:
                check_rows(self._reward.name, scores[part], slope, names)
            except RewardError as error:
                errors.append(str(error))
                results.append(None)
            else:
                errors.append(None)
                results.append((scores[part].numpy(), None if slope is None else encode(slope, returns_as(wire))))
        return Outcome(errors), *results


def placed(judge: Judge, name: str | None) -> Any:
    """`RewardActor` with the resources and packages that the recipe asks for.

    Raises:
        ValueError, TypeError: Ray does not understand the judge's `runtime_env`.
    """
    return RewardActor.options(  # type: ignore[attr-defined]
        name=name,
        num_cpus=judge.num_cpus,
        num_gpus=judge.num_gpus,
        resources=judge.resources,
        runtime_env=judge.runtime_env,
    )
