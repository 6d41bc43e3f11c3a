"""Several judges behind one door: a differentiable weighted sum of scores that remote actors compute.

The pool is made once, by the driver, and pickled to whoever asks it; its judges live as long as the driver's copy, or,
if they are shared, until the last run that uses them is done.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast
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
from rayvideo.serving.slopes import cosines, scored
from rayvideo.serving.wire import Pixels, Reply, Times, View, decode, encode

logger = logging.getLogger(__name__)

NAMESPACE = "rayvideo"
"""Where shared judges are found by name."""

User = tuple[str, list[Any]]
"""Of shared judges: an id, and a ref that lasts as long as the driver that made the pool."""


class Answer(NamedTuple):
    """What one judge says of the items that it was sent."""

    scores: Tensor
    """[N], fp32, unweighted."""
    slope: Tensor | None
    """d(score)/d(item) of each item, [N, ...]; None if it was not asked for."""
    micro_batch: int
    """Items per forward pass: less than the recipe's after a lack of memory."""


@dataclass
class Sent:
    """Frames or clips that are away at some of the judges."""

    items: Tensor
    """As they were sent, [N, 3, H, W] or [N, F', 3, H, W]: resized, if that is done on this side."""
    prompts: list[str]
    gradient: bool
    times: Times | None
    """Of clips' frames."""
    judges: tuple[Judge, ...]
    packed: Any
    """The items as the judges get them, or a ref of that."""
    since: float
    calls: list[Any] = field(default_factory=list)
    """One for each judge."""


@dataclass
class Pending:
    """Frames that are away at all judges; `RewardPool.result` fills in the lower fields."""

    sent: Sent
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
    """Judges behind one door. Of those that all see frames, the weighted sum of scores is the reward.

    `ClipReward` asks judges of whole clips too, and makes a video's reward of it all.

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
        self._views: list[View] | None = None
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

    def wait_until_ready(self, told: Callable[[str], object] = lambda judge: None) -> None:
        """Return when every judge is loaded.

        Args:
            told: Called with the name of each judge that is.

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
            told(judge.name)
        self._views = views

    @property
    def views(self) -> dict[str, View]:
        """Judge -> what it looks at; waits for judges that are not loaded yet."""
        if self._views is None:
            self.wait_until_ready()
        return {judge.name: view for judge, view in zip(self.judges, self._views or [], strict=True)}

    def submit(self, frames: Tensor, prompts: Sequence[str], gradient: bool = True) -> Pending:
        """Send frames [N, 3, H, W] in [0, 1] and their N prompts to every judge.

        Does not wait for scores, but for the judges if they are not loaded yet.
        """
        if others := [name for name, view in self.views.items() if view.sees != "frames"]:
            raise ValueError(f"judges {others} see clips, not frames; ask them through ClipReward")
        return Pending(self.send(frames, prompts, self.judges, gradient))

    def send(
        self,
        items: Tensor,
        prompts: Sequence[str],
        judges: Sequence[Judge],
        gradient: bool,
        times: Times | None = None,
    ) -> Sent:
        """Send the same frames [N, 3, H, W], or clips [N, F', 3, H, W] with their frames' times, to some judges.

        They are in [0, 1], with a prompt each. Waits for nothing but judges that are not loaded yet.
        """
        if len(prompts) != len(items):
            raise ValueError(
                f"{len(items)} {'frames' if times is None else 'clips'} need as many prompts, got {len(prompts)}"
            )
        views = self.views
        since = time.perf_counter()
        items = self._resized(items, [views[judge.name] for judge in judges])
        sent = Sent(items, list(prompts), gradient, times, tuple(judges), self._pack(items), since)
        sent.calls = [self._ask(judge, sent) for judge in judges]
        return sent

    def receive(self, sent: Sent) -> dict[str, Answer]:
        """Wait for what the judges say, on the items' device.

        Raises:
            RewardError: naming the judge that failed or took longer than its `timeout_s`.
        """
        device, answers = sent.items.device, {}
        for judge, call in zip(sent.judges, sent.calls, strict=True):
            (scores, slope), micro_batch = self._answer(judge, call, sent)
            slopes = None if slope is None else decode(slope).to(device)
            answers[judge.name] = Answer(decode(scores).to(device), slopes, micro_batch)
        return answers

    def sights(self, frames: Tensor) -> dict[str, str]:
        """Judge -> in words, how it sees frames such as these, [..., 3, H, W]: their values, sizes before and after."""
        size = "x".join(map(str, frames.shape[-2:]))
        told = f"{size} pixels of {frames.min().item():.3f} to {frames.max().item():.3f}"
        return {name: f"{told}, {_resize_of(view)}" for name, view in self.views.items()}

    def _resized(self, items: Tensor, views: Sequence[View]) -> Tensor:
        """Items as judges with these views look at them, if they agree on that and it is less to send."""
        size = views[0].size
        if size is None or any(view != views[0] for view in views):
            return items
        if size[0] * size[1] >= items.shape[-2] * items.shape[-1]:
            return items
        # The judges' own resize finds nothing left to do.
        return resize_frames(items.float(), size, cast(Resize, views[0].resize), cast(Framing, views[0].framing))

    def _pack(self, items: Tensor) -> Any:
        return ray.put(encode(items, self._wire))

    def _ask(self, judge: Judge, sent: Sent) -> Any:
        shape = tuple(sent.items.shape)
        return self._router.judge.remote(
            judge.name, [sent.packed], shape, sent.prompts, sent.gradient, self._wire, sent.times, self._user
        )

    def _answer(self, judge: Judge, call: Any, sent: Sent) -> tuple[tuple[Pixels, Pixels | None], int]:
        """The judge's scores and gradients, and its micro-batch."""
        what = "frames" if sent.times is None else "clips"
        patience = (
            f"no answer within timeout_s {judge.timeout_s:g}; raise it or replicas.max, or send fewer {what} at once"
        )
        deadline = sent.since + judge.timeout_s
        while True:
            reply: Reply = self._get(call, judge, deadline, patience)
            if reply.error:
                raise RewardError(reply.error)
            try:
                return self._get(reply.result[0], judge, deadline, patience), reply.micro_batch
            except ObjectLostError as lost:
                # The node that held the numbers, or the router, died when they were ready: the same come again.
                logger.warning("judge %r: its answer was lost, asking again: %s", judge.name, lost)
                call = self._ask(judge, sent)

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
        answers = self.receive(pending.sent)
        pending.wait_s = time.perf_counter() - started
        frames = pending.sent.items
        reward = torch.zeros(len(frames), device=frames.device)
        slopes: dict[str, Tensor] = {}
        total: Tensor | None = None
        for judge in self.judges:
            scores, slope, pending.micro_batch[judge.name] = answers[judge.name]
            pending.raw[judge.name] = scores
            reward = reward + judge.weight * scores
            if slope is not None:
                slopes[judge.name] = slope
                total = judge.weight * slope if total is None else total + judge.weight * slope
        pending.gradient_norm = {name: slope.norm().item() for name, slope in slopes.items()}
        pending.cosine = cosines(slopes)
        return scored(frames, reward, total)

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


def _router(**options: Any) -> Any:
    """A router, to be started on the driver's own node: it should not be lost with a judge's."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Router.options(scheduling_strategy=here, **options)  # type: ignore[attr-defined]


def _resize_of(view: View) -> str:
    if view.size is None:
        return "as they are, unless the judge's own code resizes them"
    framing = "" if view.resize == "bilinear" else f" with antialias, {view.framing}"
    return f"resized to {view.size[0]}x{view.size[1]}, {view.resize}{framing}"


def _needs(judge: Judge) -> str:
    custom = "".join(f", {amount:g} {name}" for name, amount in judge.resources.items())
    return f"{judge.num_cpus:g} free CPUs, {judge.num_gpus:g} free GPUs{custom}"
