"""Is the tuned model better? Clips of base and tuned model, from the same captions and noise, judged and measured."""

from __future__ import annotations

from rayvideo.errors import UserError


class EvaluationError(UserError, RuntimeError):
    """An evaluation that can't be done; the message says what is missing."""
