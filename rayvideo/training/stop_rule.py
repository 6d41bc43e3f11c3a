"""A rule of the user's that may end a run before its last step: what it offers, and how it is held to that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from rayvideo.errors import RecipeError, UserError
from rayvideo.evaluation.guarding.rows import Row
from rayvideo.own_modules import refuse_options, resolve_name
from rayvideo.runs.verdict import RuleState, Verdict
from rayvideo.sections import Training


class StopRuleError(UserError, RuntimeError):
    """The recipe's stop rule failed, or did what a rule may not do."""


@runtime_checkable
class StopRule(Protocol):
    """What `training.stop_rule` names: a class "module:Class"; `training.stop_options` are its constructor's arguments.

    Every worker has a rule of its own, and all must decide alike: by what they are told, not by the clock, by random
    numbers or by files that change. Deriving from this class is not needed, having its attributes is.
    """

    keep: int | None
    """Step whose adapter is the best so far, None as long as there is none. To set it to the step that is asked about
    saves a checkpoint of that step, which then stays until `keep` is another one."""

    def __call__(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        """Called after each optimizer step, counted from 1.

        Args:
            values: The figures of that step, which are listed in docs/summary.md under metrics.jsonl: the means over
                all workers, hence the same on each of them.

        Returns:
            None to go on. A verdict ends the run: its `step` is this one, or what `keep` was before the call.
        """

    def state(self) -> dict[str, Any]:
        """What the rule remembers, as JSON; each checkpoint holds it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` returned after a checkpoint's step, from which the run goes on; `keep` as well."""


@runtime_checkable
class WatchfulRule(StopRule, Protocol):
    """A stop rule that is also told what guards find; it needs `evaluation.guards`.

    A row comes some steps after the one that it is of, because training goes on meanwhile. The checkpoint of that step
    stays until then, and `keep` and a verdict may name it in the call that follows.
    """

    def watch(self, row: Row) -> str | None:
        """Called on every worker with each row, before the call that follows; the newest again after a resumption.

        Returns:
            A sentence for the user, if there is something to say.
        """


def load_rule(training: Training) -> StopRule | None:
    """The rule that a recipe names, None if it names none.

    Raises:
        RecipeError: naming the option; there is no such class, its constructor does not take the options, or it lacks
            something that `StopRule` lists.
    """
    name, options = training.stop_rule, training.stop_options
    if name is None:
        if options:
            raise RecipeError("training.stop_options are given, but no training.stop_rule that takes them")
        return None
    key = f"training.stop_rule {name!r}"
    if ":" not in name:
        raise RecipeError(f"{key} is not of the form 'module:Class'")
    try:
        kind = resolve_name(name)
    except ImportError as error:
        raise RecipeError(f"{key} can't be imported: {error}") from error
    if not isinstance(kind, type):
        raise RecipeError(f"{key} is not a class")
    refuse_options("training.stop_options", name, kind, options)
    try:
        rule = kind(**options)
    except Exception as error:
        raise RecipeError(f"{key} can't be made of training.stop_options {options}: {error!r}") from error
    if not isinstance(rule, StopRule):
        lacking = [part for part in ("keep", "__call__", "state", "restore") if not hasattr(rule, part)]
        raise RecipeError(f"{key} lacks {', '.join(lacking)} (rayvideo/training/stop_rule.py says what a rule offers)")
    return rule


class Stopping:
    """The recipe's stop rule on one worker, asked after each step. Without a rule, a run goes on to its last step.

    Args:
        state: What the rule remembered after the step that the run goes on from; None at a run's beginning.
        overruled: Whether the user told the run to go on whatever the rule says: it is not asked any more.
    """

    def __init__(self, training: Training, state: dict[str, Any] | None = None, *, overruled: bool = False) -> None:
        self._name = training.stop_rule
        self._rule = None if overruled else load_rule(training)
        self._verdict: Verdict | None = None
        self._held: set[int] = set()
        self._arrived: set[int] = set()
        if self._rule and state is not None:
            try:
                self._rule.restore(state)
            except Exception as error:
                raise StopRuleError(f"training.stop_rule {self._name!r}: restore() failed: {error!r}") from error

    def hold(self, step: int) -> None:
        """Save a checkpoint of a step that guards look at, and keep it until the rule knows what they found."""
        if isinstance(self._rule, WatchfulRule):
            self._held.add(step)

    def watch(self, row: Row) -> str | None:
        """Tell the rule what guards found, and return what it says to that.

        Raises:
            StopRuleError: the rule failed.
        """
        if not isinstance(self._rule, WatchfulRule):
            return None
        self._held.discard(row.step)
        self._arrived.add(row.step)
        try:
            return self._rule.watch(row)
        except Exception as error:
            raise StopRuleError(
                f"training.stop_rule {self._name!r} failed on the guards of step {row.step}: {error!r}"
            ) from error

    def ask(self, step: int, values: Mapping[str, float]) -> Verdict | None:
        """The verdict after a step, if there is one.

        Raises:
            StopRuleError: the rule failed, or names a step that may have no checkpoint.
        """
        if self._rule is None:
            return None
        before = self._rule.keep
        known, self._arrived = {before, *self._arrived}, set()
        try:
            self._verdict = self._rule(step, values)
        except Exception as error:
            raise StopRuleError(f"training.stop_rule {self._name!r} failed after step {step}: {error!r}") from error
        if self._rule.keep not in {None, step, *known}:
            raise StopRuleError(
                f"training.stop_rule {self._name!r} set keep to {self._rule.keep} after step {step}; allowed: None, "
                f"{step}, or to leave it as it was ({before})"
            )
        if self._verdict and (self._verdict.step not in {step, *known} or self._verdict.given_at != step):
            raise StopRuleError(
                f"training.stop_rule {self._name!r} gave {self._verdict} after step {step}; allowed: given_at={step}, "
                f"and a step that has a checkpoint: {step}, or what keep was before ({before})"
            )
        return self._verdict

    def must_save(self, step: int) -> bool:
        """Whether a step needs a checkpoint because the rule names it as the best so far."""
        return self._rule is not None and (self._rule.keep == step or step in self._held)

    def saved(self) -> RuleState | None:
        """What a checkpoint has to hold of the rule, None without one.

        Raises:
            StopRuleError: what the rule remembers is no JSON.
        """
        if self._rule is None:
            return None
        try:
            state = self._rule.state()
            json.dumps(state, allow_nan=False)
        except Exception as error:
            raise StopRuleError(
                f"training.stop_rule {self._name!r}: state() must return a dict that JSON can hold: {error!r}"
            ) from error
        kept = {self._rule.keep, *self._held}
        return RuleState(state, tuple(sorted(step for step in kept if step is not None)), self._verdict)
