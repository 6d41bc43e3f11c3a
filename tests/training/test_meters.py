from __future__ import annotations

import torch

from rayvideo.training.meters import Clock, Pace


def test_the_pace_is_that_of_usual_steps():
    pace = Pace()
    assert [pace.add(seconds) for seconds in (100.0, 1.0, 2.0, 90.0, 2.5)] == [None, 1.0, 1.5, 2.0, 2.25]


def test_the_clock_adds_up_by_phase():
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock("outer"), clock("inner"):
            pass
    assert set(clock.seconds) == {"outer", "inner"}
    assert clock.seconds["outer"] > clock.seconds["inner"] > 0
