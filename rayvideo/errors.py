"""What is meant for the person who typed the command."""

from __future__ import annotations

from signal import Signals


class UserError(Exception):
    """Something that only the user can mend; jobs print its message, without a traceback.

    The message names the thing (key, file, line), what is wrong with it, and what is allowed or what to do.
    """


class RecipeError(UserError, ValueError):
    """A recipe that must not run: the message names the key, the value and what is allowed."""


class Stopped(Exception):
    """A run was asked to stop by a signal, and did after it had saved `steps` steps."""

    def __init__(self, message: str, steps: int, signal: Signals) -> None:
        super().__init__(message)
        self.steps = steps
        self.exit_code = 128 + signal
