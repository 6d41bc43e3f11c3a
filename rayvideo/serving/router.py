"""A pool's router: takes requests of all workers, and hands them to the judges' replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from rayvideo.sections import Judge, Precision
from rayvideo.serving.queueing import JudgeQueue, Queued
from rayvideo.serving.wire import Reply, Times, View

USERS_POLL_S = 1.0
GRACE_S = 600.0
"""Seconds that a shared router without users goes on: after it died, users come back with their next request."""


# It owns the replicas: if it dies they do, and it starts new ones. Calls under way are made again by Ray.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Router:
    """Queues and replicas of a pool's judges.

    Args:
        label: Prefix of the replicas' names in Ray's tools.
        shared: Whether several runs use it; then it ends itself when the last one has left or died.
    """

    def __init__(self, judges: Sequence[Judge], label: str | None, merge_ms: float, shared: bool) -> None:
        self._judges = tuple(judges)
        self._queues = {judge.name: JudgeQueue(judge, label, merge_ms / 1000) for judge in judges}
        self._users: dict[str, Any] = {}
        if shared:
            self._task = asyncio.get_running_loop().create_task(self._end_when_left())

    async def join(self, user: str, token: list[Any], judges: Sequence[Judge]) -> str | None:
        """Serve one run more, for as long as the owner of `token`, a ref, lives. Returns why not, if so."""
        served, wanted = (
            {judge.name: judge.model_dump(exclude={"weight"}) for judge in each} for each in (self._judges, judges)
        )
        if differing := sorted(name for name in served | wanted if served.get(name) != wanted.get(name)):
            return f"it serves judges {sorted(served)} for another run, and {differing} differ in the recipes"
        self._users[user] = token[0]
        return None

    async def leave(self, user: str) -> None:
        """Serve a run no longer; the last one to leave ends the judges."""
        self._users.pop(user, None)
        if not self._users:
            self._end()

    async def users(self) -> int:
        """How many runs use it."""
        return len(self._users)

    async def _end_when_left(self) -> None:
        """End when every run has died without leaving."""
        loop = asyncio.get_running_loop()
        seen = loop.time() + GRACE_S
        while self._users or loop.time() < seen:
            await asyncio.sleep(USERS_POLL_S)
            for user, token in list(self._users.items()):
                try:
                    await token
                except RayError:
                    self._users.pop(user, None)
                    seen = loop.time()
        self._end()

    @staticmethod
    def _end() -> None:
        ray.kill(ray.get_runtime_context().current_actor)

    async def ready(self, judge: str) -> tuple[str | None, View | None]:
        """Wait until a judge is loaded. Returns what went wrong, or else what it looks at."""
        queue = self._queues[judge]
        await queue.ready()
        return queue.error, queue.view

    async def broken(self) -> str | None:
        """What made a judge unusable for good, if one is."""
        return next((queue.error for queue in self._queues.values() if queue.error), None)

    async def judge(
        self,
        judge: str,
        items: list[Any],
        shape: tuple[int, ...],
        prompts: Sequence[str],
        gradient: bool,
        wire: Precision,
        times: Times | None = None,
        user: tuple[str, list[Any]] | None = None,
    ) -> Reply:
        """Have frames, or clips with frames at these times, judged.

        Their ref comes in a list, and so goes the result's, so that no pixels pass through.
        """
        if user:
            self._users.setdefault(user[0], user[1][0])
        answer = asyncio.get_running_loop().create_future()
        return await self._queues[judge].ask(Queued(items[0], shape, prompts, gradient, wire, times, answer))

    async def described(self, judge: str) -> str:
        """The state of a judge's replicas, for messages."""
        return self._queues[judge].described()
