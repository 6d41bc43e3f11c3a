"""One judge's queue, and the replicas that take requests from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError, RayError

from rayvideo.sections import Judge, Precision
from rayvideo.serving.actor import placed
from rayvideo.serving.wire import Outcome, Reply, Times, View

logger = logging.getLogger(__name__)

DEATHS = 3
"""Processes in a row that may die under one request, or while loading, before the judge counts as broken."""
POLL_S = 0.25
GROW_AFTER_S = 2.0
"""Seconds over which the queue is averaged to see whether another replica is needed."""


@dataclass(eq=False)
class Queued:
    """A request: frames or clips that one caller wants judged."""

    items: Any
    """Ref of [N, 3, H, W] or [N, F', 3, H, W]: the pixels do not pass through the router."""
    shape: tuple[int, ...]
    prompts: Sequence[str]
    gradient: bool
    wire: Precision
    times: Times | None
    """Of clips' frames."""
    answer: asyncio.Future[Reply]
    alone: bool = False
    """Whether it failed together with others, and must show by itself whose fault it was."""
    deaths: int = 0

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for requests that may share a forward pass."""
        return self.gradient, self.wire, self.times, self.shape[1:]

    @property
    def described(self) -> str:
        """How many of what it holds, and how large, for messages."""
        size = "x".join(map(str, self.shape[1:]))
        return f"{self.shape[0]} {self.called} of {size}{' with gradient' if self.gradient else ''}"

    @property
    def called(self) -> str:
        """What it holds, for messages."""
        return "frames" if self.times is None else "clips"


@dataclass(eq=False)
class Replica:
    """An actor that judges, one call at a time."""

    actor: Any
    since: float
    loaded: bool = False
    dead: bool = False


class JudgeQueue:
    """Requests that wait for one judge; a replica that has nothing to do takes the oldest one.

    Args:
        label: Prefix of the replicas' names in Ray's tools.
        merge_s: Seconds that a request waits for others to share a forward pass with.
    """

    def __init__(self, judge: Judge, label: str | None, merge_s: float) -> None:
        self.error: str | None = None  # what made the judge unusable for good
        self.view: View | None = None
        self._judge, self._label, self._merge_s = judge, label, merge_s
        self._micro_batch = judge.micro_batch
        self._waiting: deque[Queued] = deque()
        self._replicas: list[Replica] = []
        self._deaths = 0  # processes in a row that died while loading
        self._changed, self._usable = asyncio.Condition(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        for _ in range(judge.replicas.min):
            self._start()
        if judge.replicas.max > judge.replicas.min:
            self._keep(self._grow())

    async def ready(self) -> None:
        """Return when a replica is loaded, or none can be: then `error` says why."""
        await self._usable.wait()

    async def ask(self, request: Queued) -> Reply:
        """Queue a request and wait for what becomes of it."""
        if self.error:
            return Reply(self.error)
        self._waiting.append(request)
        await self._notify()
        return await request.answer

    def described(self) -> str:
        """How many replicas and requests there are, for messages."""
        loaded = sum(replica.loaded for replica in self._replicas)
        return f"{loaded} of {len(self._replicas)} replicas are loaded, {len(self._waiting)} requests wait"

    # -- replicas

    def _start(self) -> None:
        # The number, because a replica's successor may start before Ray has forgotten its name.
        name = f"{self._label}/{self._judge.name}-{uuid4().hex[:8]}" if self._label else None
        actor = placed(self._judge, name).remote()
        replica = Replica(actor, asyncio.get_running_loop().time())
        self._replicas.append(replica)
        self._keep(self._live(replica))

    def _stop(self, replica: Replica) -> None:
        self._replicas.remove(replica)
        ray.kill(replica.actor)

    async def _live(self, replica: Replica) -> None:
        """A replica's life: load, then one call after the other, until it dies or is not needed any more."""
        self._keep(self._watch(replica))
        if await self._load(replica):
            while (batch := await self._next(replica)) and await self._call(replica, batch):
                pass
        if replica in self._replicas:
            self._stop(replica)
        while not self.error and len(self._replicas) < self._judge.replicas.min:
            self._start()

    async def _watch(self, replica: Replica) -> None:
        """Notice a death between two calls, so that no request meets a dead replica and another one is loaded."""
        with contextlib.suppress(RayError):
            await replica.actor.live.remote()
        replica.dead = True
        await self._notify()

    async def _load(self, replica: Replica) -> bool:
        error: str | None
        try:
            error, self.view = await replica.actor.load.remote(self._judge)
        except RayActorError as death:
            self._deaths += replica in self._replicas  # and not stopped by us
            if self._deaths < DEATHS:
                return False
            error = f"judge {self._judge.name!r}: {DEATHS} processes in a row died while loading it: {death}"
        except RayError as failure:
            error = f"judge {self._judge.name!r} can't be started: {failure}"
        if error is None:
            self._deaths, replica.loaded = 0, True
            self._usable.set()
            return True
        if any(other.loaded for other in self._replicas):
            logger.warning("judge goes on with fewer replicas: %s", error)
            await asyncio.sleep(self._judge.replicas.idle_s)
            return False
        self.error = error
        self._usable.set()
        while self._waiting:
            self._answer(self._waiting.popleft(), Reply(error))
        return False

    async def _grow(self) -> None:
        """Start another replica when on average a request waits for each one; give up those that can't start."""
        waiting: deque[int] = deque(maxlen=round(GROW_AFTER_S / POLL_S))
        while not self.error:
            await asyncio.sleep(POLL_S)
            waiting.append(len(self._waiting))
            starting = [replica for replica in self._replicas if not replica.loaded]
            count, options = len(self._replicas), self._judge.replicas
            if starting:
                too_long = asyncio.get_running_loop().time() - starting[-1].since > options.idle_s
                if count > options.min and too_long and not any(waiting):
                    self._stop(starting[-1])
            elif count < options.max and len(waiting) == waiting.maxlen and fmean(waiting) >= count:
                self._start()
                waiting.clear()

    # -- requests

    async def _next(self, replica: Replica) -> list[Queued]:
        """The requests of the next call; none if the replica is dead, or idle for so long that it should go."""
        while not self._waiting and not replica.dead:
            async with self._changed:
                work = self._changed.wait_for(lambda: self._waiting or replica.dead)
                try:
                    await asyncio.wait_for(work, self._judge.replicas.idle_s)
                except asyncio.TimeoutError:
                    if not self._waiting and len(self._replicas) > self._judge.replicas.min:
                        return []
        if replica.dead:
            return []
        batch = [self._waiting.popleft()]
        if self._merge_s and not batch[0].alone and self._spare(batch):
            await asyncio.sleep(self._merge_s)
            for other in list(self._waiting):
                if not other.alone and other.kind == batch[0].kind and self._saves(batch, other):
                    self._waiting.remove(other)
                    batch.append(other)
        return batch

    def _spare(self, batch: Sequence[Queued]) -> int:
        """Frames, or clips, that the last forward pass has room for."""
        return -sum(request.shape[0] for request in batch) % self._micro_batch

    def _saves(self, batch: Sequence[Queued], other: Queued) -> bool:
        """Whether judging `other` together with `batch` takes a forward pass less than by itself."""
        return (other.shape[0] - 1) % self._micro_batch < self._spare(batch)

    async def _call(self, replica: Replica, batch: list[Queued]) -> bool:
        """Have a replica judge the requests, then answer them or put them back. Returns whether the replica lives."""
        name, micro_batch, timeout_s = f"judge {self._judge.name!r}", self._micro_batch, self._judge.timeout_s
        outcome, *results = replica.actor.judge.options(num_returns=1 + len(batch)).remote(
            [request.prompts for request in batch],
            batch[0].gradient,
            batch[0].wire,
            micro_batch,
            batch[0].times,
            *(request.items for request in batch),
        )
        try:
            found: Outcome = await asyncio.wait_for(outcome, timeout_s)
        except asyncio.TimeoutError:
            for request in batch:
                self._fail(request, f"{name}: no answer within timeout_s {timeout_s:g}")
            return False
        except RayActorError as death:
            for request in batch:
                request.deaths += 1
            await self._again(batch, f"{name}: {DEATHS} processes in a row died in this request, at last so: {death}")
            return False
        except RayError as failure:
            # The judge's own errors are outcomes; so this is about what a caller sent, who may be dead.
            reason = f"{name}: the {batch[0].called} did not arrive: {failure}"
            await self._again(batch, reason, give_up=len(batch) == 1)
            return True
        if found.out_of_memory:
            # Once: a judge that needs less still should be given more memory, or a smaller micro_batch.
            once = micro_batch == self._judge.micro_batch > 1
            if once and self._micro_batch == micro_batch:
                self._micro_batch = micro_batch // 2
                logger.warning(
                    "judge %r: out of memory; micro-batch %d from now on", self._judge.name, micro_batch // 2
                )
            await self._again(batch, f"{found.failure} (with micro_batch {micro_batch})", give_up=not once)
        elif found.failure:
            await self._again(batch, found.failure, give_up=len(batch) == 1)
        else:
            for request, error, result in zip(batch, found.errors, results, strict=True):
                if error:
                    self._fail(request, error)
                else:
                    self._answer(request, Reply(None, [result], micro_batch))
        return True

    async def _again(self, batch: Sequence[Queued], reason: str, give_up: bool | None = None) -> None:
        """Put requests back, each to be judged by itself; those that have failed for good are answered `reason`."""
        for request in reversed(batch):
            request.alone = True
            if request.deaths >= DEATHS if give_up is None else give_up:
                self._fail(request, reason)
            else:
                self._waiting.appendleft(request)
        await self._notify()

    def _fail(self, request: Queued, reason: str) -> None:
        self._answer(request, Reply(f"{reason} (request: {request.described})"))

    @staticmethod
    def _answer(request: Queued, reply: Reply) -> None:
        if not request.answer.done():  # as it is where the caller has died
            request.answer.set_result(reply)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _keep(self, coroutine: Any) -> None:
        # The event loop itself holds tasks weakly.
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
