"""A stop rule gets its options and its memory, and names nothing that has no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rayvideo.errors import RecipeError
from rayvideo.runs.verdict import RuleState, Verdict, verdict_of
from rayvideo.sections import Training
from rayvideo.training.stop_rule import Stopping, StopRuleError, load_rule
from tests.documents import block_of


class Patience:
    """Ends a run whose reward has not risen for `patience` steps, in favour of the best step."""

    def __init__(self, patience: int = 2) -> None:
        self.patience = patience
        self.keep: int | None = None
        self.best = float("-inf")

    def __call__(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        if values["reward"] > self.best:
            self.keep, self.best = step, values["reward"]
        elif self.keep and step - self.keep >= self.patience:
            return Verdict(self.keep, f"the reward has not risen for {self.patience} steps", given_at=step)
        return None

    def state(self) -> dict[str, Any]:
        return {"keep": self.keep, "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        self.keep, self.best = state["keep"], state["best"]


class Odd(Patience):
    """Does what `how` says, which is not allowed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def __call__(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        if self.how == "raises":
            raise KeyError("a mistake")
        if self.how == "keeps":
            self.keep = 1
        if self.how == "gone":
            self.keep = step
            return Verdict(2, "an earlier step", given_at=step)
        return Verdict(step, "now", given_at=step + 1) if self.how == "later" else None

    def state(self) -> dict[str, Any]:
        return {"x": float("nan")}


class Forgetful:
    """Lacks a memory."""

    keep = None

    def __call__(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        return None


def rule(name: str, **options: Any) -> Training:
    return Training(stop_rule=f"{__name__}:{name}", stop_options=options)


def ask(stopping: Stopping, rewards: Mapping[int, float]) -> dict[int, Verdict]:
    asked = {step: stopping.ask(step, {"reward": reward}) for step, reward in rewards.items()}
    return {step: verdict for step, verdict in asked.items() if verdict}


def test_a_rule_ends_the_run_in_favour_of_an_earlier_step_and_goes_on_where_it_was() -> None:
    stopping = Stopping(rule("Patience", patience=3))
    assert ask(stopping, {1: 0.5, 2: 0.9}) == {}
    assert [stopping.must_save(step) for step in (1, 2)] == [False, True]
    saved = stopping.saved()
    assert saved == RuleState({"keep": 2, "best": 0.9}, keep=(2,), verdict=None)
    resumed = Stopping(rule("Patience", patience=3), saved.state)
    expected = Verdict(2, "the reward has not risen for 3 steps", given_at=5)
    assert ask(resumed, {3: 0.1, 4: 0.2, 5: 0.3}) == {5: expected}
    assert not resumed.must_save(4)
    last = resumed.saved()
    assert last is not None
    assert last.verdict == expected
    assert last.keep == (2,)


def test_the_documented_rule_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "documented.py").write_text(block_of("docs/checkpointing.md", "python", "Verdict"))
    monkeypatch.syspath_prepend(tmp_path)
    stopping = Stopping(Training(stop_rule="documented:Saturated", stop_options={"every": 2}))
    verdicts = [stopping.ask(step, {"saturation": value}) for step, value in ((1, 0.9), (2, 0.1), (3, 0.1), (4, 0.3))]
    assert verdicts == [None, None, None, Verdict(2, "more than 20% of the pixels are saturated", given_at=4)]
    assert stopping.saved() == RuleState({"keep": 2}, keep=(2,), verdict=verdicts[3])


def test_without_a_rule_or_overruled_nothing_is_asked() -> None:
    for stopping in (Stopping(Training()), Stopping(rule("Odd", how="raises"), {"x": 1}, overruled=True)):
        assert stopping.ask(1, {}) is None
        assert not stopping.must_save(1)
        assert stopping.saved() is None


def test_a_checkpoint_says_whether_a_verdict_ended_the_run() -> None:
    verdict = Verdict(1, "enough", given_at=2)
    state = {"verdict": verdict._asdict(), "recipe": {"training": {"steps": 4}}}
    assert verdict_of(state, 4) == verdict
    assert verdict_of(state, 8) == verdict
    assert verdict_of({"verdict": None}, 4) is None
    assert verdict_of({}, 4) is None, "of an earlier version"


def test_a_verdict_after_the_last_step_chose_the_product_and_ends_no_longer_run() -> None:
    state = {"verdict": Verdict(1, "best", given_at=4)._asdict(), "recipe": {"training": {"steps": 4}}}
    assert verdict_of(state, 4) == Verdict(1, "best", given_at=4)
    assert verdict_of(state, 8) is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"training\.stop_rule '.*:Odd' failed after step 3: KeyError\('a mistake'\)"),
        ("keeps", r"set keep to 1 after step 3; allowed: None, 3, or to leave it as it was \(None\)"),
        ("gone", r"gave Verdict\(step=2, .*allowed: given_at=3, .* 3, or what keep was before \(None\)"),
        ("later", r"given_at=4\) after step 3; allowed: given_at=3"),
    ],
)
def test_what_a_rule_may_not_do_ends_the_run(how: str, message: str) -> None:
    with pytest.raises(StopRuleError, match=message):
        Stopping(rule("Odd", how=how)).ask(3, {"reward": 0.0})


def test_a_memory_that_cannot_be_written_or_read_is_named() -> None:
    with pytest.raises(StopRuleError, match=r"state\(\) must return a dict that JSON can hold"):
        Stopping(rule("Odd", how="")).saved()
    with pytest.raises(StopRuleError, match=r":Patience': restore\(\) failed: KeyError\('keep'\)"):
        Stopping(rule("Patience"), {})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            rule("Patience", patienc=3),
            r"^training\.stop_options\.patienc is not .* did you mean 'patience'\? Allowed: pa",
        ),
        (rule("Odd"), r"^training\.stop_options don't fit '.*:Odd': missing a required argument: 'how'"),
        (rule("Forgetful"), r"^training\.stop_rule '.*:Forgetful' lacks state, restore \("),
        (rule("rule"), r"^training\.stop_rule '.*:rule' is not a class"),
        (rule("Nobody"), r"^training\.stop_rule '.*:Nobody' can't be imported: .*no attribute 'Nobody'"),
        (Training(stop_rule="patience"), r"^training\.stop_rule 'patience' is not of the form 'module:Class'"),
        (Training(stop_options={"a": 1}), r"^training\.stop_options are given, but no training\.stop_rule"),
    ],
)
def test_rules_that_cannot_work_are_refused(training: Training, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_rule(training)
