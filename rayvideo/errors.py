"""The one kind of error that is meant for the person who typed the command."""

from __future__ import annotations


class UserError(Exception):
    """Something that only the user can mend; jobs print its message, without a traceback.

    The message names the thing (key, file, line), what is wrong with it, and what is allowed or what to do.
    """
