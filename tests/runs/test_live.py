"""What a terminal shows of a training, in a real one."""

from __future__ import annotations

import re

import pytest

from rayvideo.runs.live import clock, curve, unsaid
from tests.terminal import Terminal, screen

PROGRAM = """
import logging, sys
from rayvideo.runs.live import LiveView
from rayvideo.runs.news import News
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
view = LiveView(60)
for step in range(1, 13):
    view.show(News(step=step, attempt=1, pace=6.1, scores={"judge": 0.25}, reward=step / 100, judge_wait=0.03,
                   compared={"held_out": [0.2, 0.23], "motion": [0.5, 0.4]}, compared_at=10,
                   said=["judge 'judge' sees 4 of 16 frames"]))
    if step == 5:
        logging.info("a line of the log")
        logging.warning("[bold]as it is[/bold]")
        print("a line that Ray prints for a worker", file=sys.stderr)
        print("a line of the program")
"""
FULL = [
    "time         00:00, 6.1 s a step, 04:52 left",
    "reward       0.0950 (+0.0600 since step 1)  ▁▂▂▃▄▄▅▅▆▇▇█",
    "judges       judge 0.2500; waiting for them: 3% of a step",
    "step 10      held_out 0.2300 (base 0.2000), motion 0.4000 (base 0.5000)",
]


@pytest.fixture(scope="module")
def shown() -> Terminal:
    after = "logging.info('after it')\nprint('stderr', sys.stderr is sys.__stderr__)"
    terminal = Terminal(f"{PROGRAM}view.close()\n{after}")
    assert terminal.end() == 0
    return terminal


def test_the_view_stands_once_below_the_lines_that_came(shown):
    lines = [re.sub(r"^time         \d\d:\d\d", "time         00:00", line) for line in screen(shown.written)]
    above = ["judge 'judge' sees 4 of 16 frames", "INFO a line of the log", "WARNING [bold]as it is[/bold]"]
    assert lines[:5] == [*above, "a line that Ray prints for a worker", "a line of the program"]
    assert re.fullmatch(r"fine-tuning  ━+.*━ 12/60 steps", lines[5])
    assert lines[6:] == [*FULL, "INFO after it", "stderr True", ""]


def test_the_cursor_comes_back(shown):
    assert shown.written.rindex("\x1b[?25h") > shown.written.rindex("\x1b[?25l")


def test_ctrl_c_leaves_the_terminal_as_it_was():
    wait = """
try:
    print("ready now")
    sys.stdin.readline()
finally:
    view.close()
"""
    terminal = Terminal(PROGRAM + wait)
    terminal.until("ready now")
    terminal.type("\x03")
    assert terminal.end() != 0
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")
    assert "KeyboardInterrupt" in screen(terminal.written)[-2]


def test_a_narrower_window_cuts_lines_and_breaks_none():
    terminal = Terminal(PROGRAM + "print('ready now')\nsys.stdin.readline()\nview.close()", columns=100)
    terminal.until("ready now")
    terminal.resize(40)
    terminal.type("\n")
    assert terminal.end() == 0
    above, *view = screen(terminal.written)[-7:]
    assert above == "ready now"
    assert max(map(len, view)) == 40
    assert view[2] == "reward       0.0950 (+0.0600 since step…"


def test_what_goes_into_a_file_still_does(tmp_path):
    file = tmp_path / "out.txt"
    terminal = Terminal(f"import sys\nsys.stdout = open({str(file)!r}, 'w')\n{PROGRAM}view.close()")
    assert terminal.end() == 0
    assert file.read_text() == "a line of the program\n"
    assert "a line of the program" not in terminal.written


def test_times_curves_and_what_is_new():
    assert [clock(seconds) for seconds in (0, 125.9, 3600)] == ["00:00", "02:05", "1:00:00"]
    assert curve([0.0, 1.0]) == "▁█"
    assert curve([0.5] * 3) == "▁▁▁"
    assert len(curve([float(n) for n in range(1000)])) == 24
    assert list(unsaid(["a"], ["a", "b"])) == ["b"]
    assert list(unsaid(["a", "b"], ["c"])) == ["c"]
