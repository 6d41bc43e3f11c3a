"""A folder's name with the letters that mean something else in addresses and in the shell."""

from __future__ import annotations

from sqlalchemy import make_url

HAS_QUESTION_MARKS = make_url("sqlite:////a%3F").database == "/a?"
"""SQLAlchemy before 2.1, as Python 3.10 has it, finds no database below a folder with one."""

ODD = "a #1 50% b %20c'd" + "?" * HAS_QUESTION_MARKS
