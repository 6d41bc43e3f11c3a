"""A small stop rule for tests of runs that end by a verdict, named in recipes as `tests.cluster.rules:Class`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayvideo.runs.verdict import Verdict


class Ends:
    """Ends a run after step `after` in favour of step `favourite`."""

    def __init__(self, after: int, favourite: int) -> None:
        self.after = after
        self.favourite = favourite
        self.keep: int | None = None
        self.rewards: list[float] = []

    def __call__(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        self.rewards.append(values["reward"])
        if step == self.favourite:
            self.keep = step
        return Verdict(self.favourite, f"{step} steps are enough", given_at=step) if step == self.after else None

    def state(self) -> dict[str, Any]:
        return {"keep": self.keep, "rewards": self.rewards}

    def restore(self, state: dict[str, Any]) -> None:
        self.keep, self.rewards = state["keep"], state["rewards"]
