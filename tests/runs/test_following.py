"""What a log shows of a training."""

from __future__ import annotations

import io
import re
import sys

import pytest

from rayvideo.runs.following import View
from rayvideo.runs.news import News
from rayvideo.training.ray_train.failures import reason


def lines_of(monkeypatch: pytest.MonkeyPatch, *news: News) -> list[str]:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    view = View(60)
    for one in news:
        view.show(one)
    view.close()
    assert "\r" not in log.getvalue()
    return [re.sub(r"in [\d:]+", "in T", line) for line in log.getvalue().splitlines()]


def test_every_phase_is_told_and_counted(monkeypatch):
    assert lines_of(
        monkeypatch,
        News("starting workers"),
        News("starting workers"),
        News("previews of the base", 0, 12, step=0, attempt=1),
        News("previews of the base", 12, 12, step=0, attempt=1),
        News("first step (warming up)", step=0, attempt=1),
        News(step=1, attempt=1, scores={"judge": 0.5}),
    ) == [
        "fine-tuning: 0/60 steps in T",
        "fine-tuning: starting workers",
        "previews of the base: 0/12 clips in T, ? left",
        "previews of the base: 12/12 clips in T, 00:00 left",
        "fine-tuning: first step (warming up)",
        "fine-tuning: 1/60 steps in T, judge=0.5000",
    ]


def test_time_left_comes_from_the_usual_step(monkeypatch):
    last = lines_of(monkeypatch, News(step=12, attempt=1, pace=6.1, scores={"judge": 0.5}))[-1]
    assert last == "fine-tuning: 12/60 steps in T, 6.1 s a step, 04:52 left, judge=0.5000"
    assert "0.025 s a step" in lines_of(monkeypatch, News(step=12, attempt=1, pace=0.025))[-1]


def test_of_a_workers_error_what_was_raised_is_told():
    assert reason(RuntimeError("Traceback (most recent call last):\n  File x\nRuntimeError: out of memory")) == (
        "RuntimeError: out of memory"
    )
    assert reason(RuntimeError()) == "RuntimeError()"
