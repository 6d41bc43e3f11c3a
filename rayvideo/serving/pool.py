"""Several judges behind one door: a differentiable weighted sum of scores that remote actors compute.

The pool is made once, by the driver, and pickled to whoever asks it; its judges live as long as the driver's copy, or,
if they are shared, until the last run that uses them is done.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast
from uuid import uuid4

import ray
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from rayvideo.rewards.base import RewardError
from rayvideo.rewards.pixels import Framing, Resize, resize_frames
from rayvideo.sections import Judge, Precision
from rayvideo.serving.actor import placed
from rayvideo.serving.router import Router
from rayvideo.serving.wire import Pixels, Reply, View, decode, encode

logger = logging.getLogger(__name__)

NAMESPACE = "rayvideo"
"""Where shared judges are found by name."""

User = tuple[str, list[Any]]
"""Of shared judges: an id, and a ref that lasts as long as the driver that made the pool."""

Judged = tuple[Pixels, Pixels | None]
"""Scores [N], and gradients [N, 3, H, W] if they were asked for."""


@dataclass
class Pending:
    """Frames that are away at the judges; `RewardPool.result` fills in the lower fields."""

    frames: Tensor
    """As they were sent, [N, 3, H, W]: resized, if that is done on this side."""
    prompts: list[str]
    gradient: bool
    packed: Any
    """The frames as the judges get them, or a ref of that."""
    calls: list[Any]
    since: float
    raw: dict[str, Tensor] = field(default_factory=dict)
    """Judge -> its unweighted scores [N]."""
    gradient_norm: dict[str, float] = field(default_factory=dict)
    """Judge -> L2 norm of d(sum of its unweighted scores)/d(frames); empty if no gradient was asked for."""
    cosine: dict[tuple[str, str], float] = field(default_factory=dict)
    """Two judges -> cosine of these gradients: negative where they pull in opposite directions."""
    micro_batch: dict[str, int] = field(default_factory=dict)
    """Judge -> frames per forward pass: less than the recipe's after a lack of memory."""
    wait_s: float = 0.0
    """Seconds that the caller stood waiting for the judges."""


class RewardPool:
    """Judges that score frames; their weighted sum is the reward.

    Args:
        judges: At least one; each gets replicas with the resources that it reserves.
        name: Name of the router, and prefix of the replicas' names, in Ray's tools (default: they have none).
        shared: Name under which other runs find the same judges, and this run those of another.
        merge_ms: Milliseconds that a request waits for others to share a forward pass with; 0 merges none.
        wire: Precision of frames on their way to the judges; gradients return in it too, as bf16 in place of fp16.

    Raises:
        RewardError: Ray does not understand a judge's `runtime_env`, or `shared` serves other judges.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        *,
        name: str | None = None,
        shared: str | None = None,
        merge_ms: float = 2.0,
        wire: Precision = "fp32",
    ) -> None:
        self.judges = tuple(judges)
        for judge in judges:
            try:
                placed(judge, None)
            except (ValueError, TypeError) as error:
                raise RewardError(f"judge {judge.name!r}: runtime_env is not allowed: {error}") from error
        self._wire: Precision = wire
        self._views: list[View | None] | None = None
        self._user: User | None = (uuid4().hex, [ray.put(None)]) if shared else None
        if self._user and shared:
            self._router = self._join(shared, self._user, merge_ms)
        else:
            self._router = _router(name=name).remote(self.judges, name, merge_ms, False)

    def _join(self, shared: str, user: User, merge_ms: float) -> Any:
        """The router of this name, made if there is none."""
        options = {"name": shared, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        while True:
            router = _router(**options).remote(self.judges, shared, merge_ms, True)
            try:
                refused = ray.get(router.join.remote(*user, self.judges))
            except ActorDiedError:  # the last run left at this moment
                continue
            if refused:
                raise RewardError(f"reward.shared {shared!r}: {refused}; give this run's judges another name")
            return router

    def refuse_broken(self) -> None:
        """Raise if a judge has turned out to be unusable: for whoever works while the judges load.

        Raises:
            RewardError: naming the judge.
        """
        if error := ray.get(self._router.broken.remote()):
            raise RewardError(error)

    def wait_until_ready(self) -> None:
        """Return when every judge is loaded.

        Raises:
            RewardError: naming the judge that can't be loaded, or isn't within its `load_timeout_s`.
        """
        since, views = time.perf_counter(), []
        for judge, call in [(judge, self._router.ready.remote(judge.name)) for judge in self.judges]:
            patience = (
                f"not loaded within load_timeout_s {judge.load_timeout_s:g}; is there a node with {_needs(judge)}?"
            )
            error, view = self._get(call, judge, since + judge.load_timeout_s, patience)
            if error:
                raise RewardError(error)
            views.append(view)
        self._views = views

    def submit(self, frames: Tensor, prompts: Sequence[str], gradient: bool = True) -> Pending:
        """Send frames [N, 3, H, W] in [0, 1] and their N prompts to every judge.

        Does not wait for scores, but for the judges if they are not loaded yet.
        """
        if len(prompts) != len(frames):
            raise ValueError(f"{len(frames)} frames need as many prompts, got {len(prompts)}")
        if self._views is None:
            self.wait_until_ready()
        since = time.perf_counter()
        frames = self._resized(frames)
        pending = Pending(frames, list(prompts), gradient, self._pack(frames), [], since)
        pending.calls = [self._ask(judge, pending) for judge in self.judges]
        return pending

    def _resized(self, frames: Tensor) -> Tensor:
        """Frames as all judges look at them, if they agree on that and it is less to send."""
        view, *others = self._views or [None]
        if view is None or any(other != view for other in others):
            return frames
        height, width = frames.shape[-2:]
        if view.size[0] * view.size[1] >= height * width:
            return frames
        # The judges' own resize finds nothing left to do.
        return resize_frames(frames.float(), view.size, cast(Resize, view.resize), cast(Framing, view.framing))

    def _pack(self, frames: Tensor) -> Any:
        return ray.put(encode(frames, self._wire))

    def _ask(self, judge: Judge, pending: Pending) -> Any:
        shape = tuple(pending.frames.shape)
        return self._router.judge.remote(
            judge.name, [pending.packed], shape, pending.prompts, pending.gradient, self._wire, self._user
        )

    def _answer(self, judge: Judge, call: Any, pending: Pending) -> tuple[Judged, int]:
        """What the judge found, and its micro-batch."""
        patience = (
            f"no answer within timeout_s {judge.timeout_s:g}; raise it or replicas.max, or send fewer frames at once"
        )
        deadline = pending.since + judge.timeout_s
        while True:
            reply: Reply = self._get(call, judge, deadline, patience)
            if reply.error:
                raise RewardError(reply.error)
            try:
                return self._get(reply.result[0], judge, deadline, patience), reply.micro_batch
            except ObjectLostError as lost:
                # The node that held the numbers, or the router, died when they were ready: the same come again.
                logger.warning("judge %r: its answer was lost, asking again: %s", judge.name, lost)
                call = self._ask(judge, pending)

    def _get(self, call: Any, judge: Judge, deadline: float, patience: str) -> Any:
        try:
            return ray.get(call, timeout=max(0.0, deadline - time.perf_counter()))
        except GetTimeoutError:
            raise RewardError(f"judge {judge.name!r}: {patience} ({self._state_of(judge)})") from None
        except RayActorError as error:
            raise RewardError(
                f"judge {judge.name!r}: its pool was closed, or its router can't be started again: {error}"
            ) from error

    def _state_of(self, judge: Judge) -> str:
        try:
            return ray.get(self._router.described.remote(judge.name), timeout=5)
        except GetTimeoutError:
            return "its router doesn't answer"

    def result(self, pending: Pending) -> Tensor:
        """Wait for the weighted sum of scores [N] (fp32, on the frames' device), an autograd node over the frames.

        Raises:
            RewardError: naming the judge that failed or took longer than its `timeout_s`.
        """
        started = time.perf_counter()
        device = pending.frames.device
        reward = torch.zeros(len(pending.frames), device=device)
        slopes: dict[str, Tensor] = {}
        total: Tensor | None = None
        for judge, call in zip(self.judges, pending.calls, strict=True):
            (scores, slope), pending.micro_batch[judge.name] = self._answer(judge, call, pending)
            pending.raw[judge.name] = decode(scores).to(device)
            reward = reward + judge.weight * pending.raw[judge.name]
            if slope is not None:
                slopes[judge.name] = own = decode(slope).to(device)
                pending.gradient_norm[judge.name] = own.norm().item()
                total = judge.weight * own if total is None else total + judge.weight * own
        pending.wait_s = time.perf_counter() - started
        for one, other in combinations(slopes, 2):
            pending.cosine[one, other] = torch.cosine_similarity(
                slopes[one].flatten(), slopes[other].flatten(), 0
            ).item()
        return reward if total is None else _Scored.apply(pending.frames, reward, total)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Weighted sum of scores [N] of frames [N, 3, H, W] in [0, 1]; differentiable if the frames are."""
        return self.result(self.submit(frames, prompts, gradient=frames.requires_grad and torch.is_grad_enabled()))

    def close(self) -> None:
        """End the judges; shared ones when no other run uses them."""
        if self._user:
            with contextlib.suppress(RayActorError):  # it ends if this was the last run
                ray.get(self._router.leave.remote(self._user[0]))
        else:
            ray.kill(self._router)


class _Scored(torch.autograd.Function):
    """Rewards [N] whose derivative by frames [N, 3, H, W] is known already."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, reward: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return reward

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream.view(-1, 1, 1, 1) * slope, None, None


def _router(**options: Any) -> Any:
    """A router, to be started on the driver's own node: it should not be lost with a judge's."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Router.options(scheduling_strategy=here, **options)  # type: ignore[attr-defined]


def _needs(judge: Judge) -> str:
    custom = "".join(f", {amount:g} {name}" for name, amount in judge.resources.items())
    return f"{judge.num_cpus:g} free CPUs, {judge.num_gpus:g} free GPUs{custom}"
