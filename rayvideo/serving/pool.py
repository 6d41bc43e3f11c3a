"""Several judges behind one door: a differentiable weighted sum of scores that remote actors compute.

The pool is made once, by the driver, and pickled to whoever asks it; the actors live as long as the driver's copy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from rayvideo.recipe import Judge
from rayvideo.rewards.base import RewardError
from rayvideo.serving.actor import Array, RewardActor


@dataclass
class Pending:
    """Frames that are away at the judges; `RewardPool.result` fills in the lower fields."""

    frames: Tensor
    calls: list[Any]
    since: float
    raw: dict[str, Tensor] = field(default_factory=dict)
    """Judge -> its unweighted scores [N]."""
    gradient_norm: dict[str, float] = field(default_factory=dict)
    """Judge -> L2 norm of d(sum of its unweighted scores)/d(frames); empty if no gradient was asked for."""
    wait_s: float = 0.0
    """Seconds that the caller stood waiting for the judges."""


class RewardPool:
    """Judges that score frames; their weighted sum is the reward.

    Args:
        judges: At least one; each gets an actor with the CPUs and GPUs that it reserves.
        name: Prefix of the actors' names, which Ray's tools show (default: they have none).
    """

    def __init__(self, judges: Sequence[Judge], *, name: str | None = None) -> None:
        self.judges = tuple(judges)
        self._actors = [
            RewardActor.options(  # type: ignore[attr-defined]
                name=f"{name}/{judge.name}" if name else None, num_cpus=judge.num_cpus, num_gpus=judge.num_gpus
            ).remote(judge)
            for judge in judges
        ]

    def wait_until_ready(self) -> None:
        """Return when every judge is loaded.

        Raises:
            RewardError: naming the judge that can't be loaded, or isn't within its `timeout_s`.
        """
        for judge, call in zip(self.judges, [actor.ready.remote() for actor in self._actors], strict=True):
            _get(call, judge, f"not loaded within timeout_s {judge.timeout_s:g}; is there a node with {_needs(judge)}?")

    def submit(self, frames: Tensor, prompts: Sequence[str], gradient: bool = True) -> Pending:
        """Send frames [N, 3, H, W] in [0, 1] and their N prompts to every judge, without waiting."""
        if len(prompts) != len(frames):
            raise ValueError(f"{len(frames)} frames need as many prompts, got {len(prompts)}")
        since = time.perf_counter()
        return Pending(frames, self._call(frames.detach().float().cpu().numpy(), list(prompts), gradient), since)

    def _call(self, frames: Array, prompts: list[str], gradient: bool) -> list[Any]:
        array = ray.put(frames)
        return [actor.judge.remote(array, prompts, gradient) for actor in self._actors]

    def _answer(self, judge: Judge, call: Any, since: float) -> tuple[Array, Array | None]:
        patience = f"no answer within timeout_s {judge.timeout_s:g}; raise it, or send fewer frames at once"
        return _get(call, judge, patience, since=since)

    def result(self, pending: Pending) -> Tensor:
        """Wait for the weighted sum of scores [N] (fp32, on the frames' device), an autograd node over the frames.

        Raises:
            RewardError: naming the judge that failed or took longer than its `timeout_s`.
        """
        started = time.perf_counter()
        device = pending.frames.device
        reward = torch.zeros(len(pending.frames), device=device)
        slope: Tensor | None = None
        for judge, call in zip(self.judges, pending.calls, strict=True):
            scores, gradient = self._answer(judge, call, pending.since)
            pending.raw[judge.name] = torch.tensor(scores, device=device)
            reward = reward + judge.weight * pending.raw[judge.name]
            if gradient is not None:
                own = torch.tensor(gradient, device=device)
                pending.gradient_norm[judge.name] = own.norm().item()
                slope = judge.weight * own if slope is None else slope + judge.weight * own
        pending.wait_s = time.perf_counter() - started
        return reward if slope is None else _Scored.apply(pending.frames, reward, slope)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Weighted sum of scores [N] of frames [N, 3, H, W] in [0, 1]; differentiable if the frames are."""
        return self.result(self.submit(frames, prompts, gradient=frames.requires_grad and torch.is_grad_enabled()))

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)


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


def _get(call: Any, judge: Judge, patience: str, since: float | None = None) -> Any:
    waited = 0.0 if since is None else time.perf_counter() - since
    try:
        return ray.get(call, timeout=max(0.0, judge.timeout_s - waited))
    except GetTimeoutError:
        raise RewardError(f"judge {judge.name!r}: {patience}") from None
    except RayTaskError as error:
        # The judge's own words, without the trace of its process.
        raise (error.cause if isinstance(error.cause, RewardError) else error) from None
    except RayActorError as error:
        raise RewardError(f"judge {judge.name!r}: its actor died: {error}") from error


def _needs(judge: Judge) -> str:
    return f"{judge.num_cpus:g} free CPUs and {judge.num_gpus:g} free GPUs"
