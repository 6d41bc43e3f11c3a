"""What a terminal shows of a training: one view that stays in its place, with lines above it as they come."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from statistics import fmean

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayvideo.runs.news import News

WINDOW = 10  # most values of the reward whose means are compared
CURVE = 24  # columns of the reward's curve
BAR = 30  # columns of the bar of steps
LABEL = len("fine-tuning  ")
BLOCKS = "▁▂▃▄▅▆▇█"
PER_SECOND = 2.0


class LiveView:
    """Steps, reward and its trend, judges, the newest comparison with the base, and what takes the time.

    Log lines and what is printed meanwhile, by this process and by Ray for its workers, appear above it.

    Args:
        steps: Of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._news = News()
        self._began = time.monotonic()
        self._rewards: list[tuple[int, float]] = []  # step and reward, as often as they were looked at
        self._said: list[str] = []
        self._moved = ExitStack()
        self._console = Console(stderr=True)
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file still does
            vertical_overflow="crop",
        )
        self._live.start()
        _move_handlers(self._moved)

    def show(self, news: News) -> None:
        """Bring the view up to what is known now."""
        for line in unsaid(self._said, news.said):
            self.say(line)
        self._said = news.said
        if news.step is not None and news.reward is not None:
            earlier = [(step, reward) for step, reward in self._rewards if step < news.step]  # a restart goes back
            self._rewards = [*earlier, (news.step, news.reward)]
        self._news = news

    def say(self, text: str) -> None:
        """Print a line above the view."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the view as it is, and the terminal to others."""
        self._moved.close()
        self._live.stop()

    def __rich__(self) -> Table:
        news, grid = self._news, Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        # Left to itself, a grid takes from both columns in a narrow window.
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=max(1, self._console.width - LABEL))
        done = news.step or 0
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(self._steps, done, width=min(BAR, max(1, self._console.width // 3))),
            Text(f"{done}/{self._steps} steps", no_wrap=True, overflow="ellipsis"),
        )
        grid.add_row("fine-tuning", bar)
        grid.add_row("time", _line(self._time(news, done)))
        if self._rewards:
            grid.add_row("reward", _line(self._reward()))
        if news.scores:
            scores = ", ".join(f"{judge} {score:.4f}" for judge, score in news.scores.items())
            grid.add_row("judges", _line(f"{scores}; waiting for them: {news.judge_wait:.0%} of a step"))
        if news.compared:
            measures = (f"{name} {tuned:.4f} (base {base:.4f})" for name, (base, tuned) in news.compared.items())
            grid.add_row(f"step {news.compared_at}", _line(", ".join(measures)))
        if news.phase:
            grid.add_row("now", _line(news.phase + (f": {news.done}/{news.total}" if news.total else "")))
        return grid

    def _time(self, news: News, done: int) -> str:
        spent = clock(time.monotonic() - self._began)
        if news.pace is None:
            return spent
        pace = f"{news.pace:{'.1f' if news.pace >= 1 else '.2g'}}"
        return f"{spent}, {pace} s a step, {clock(news.pace * (self._steps - done))} left"

    def _reward(self) -> str:
        values = [reward for _, reward in self._rewards]
        window = min(WINDOW, max(1, len(values) // 2))
        last = fmean(values[-window:])
        gain = f" ({last - fmean(values[:window]):+.4f} since step {self._rewards[0][0]})" if values[1:] else ""
        return f"{last:.4f}{gain}  {curve(values)}"


def unsaid(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """The lines of `now` that were not told before; all of them where another attempt begins its own."""
    return now[len(before) if list(now[: len(before)]) == list(before) else 0 :]


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any: 02:05, 1:00:00."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def curve(values: Sequence[float], columns: int = CURVE) -> str:
    """All values as a line of blocks, each the mean of equally many neighbours."""
    columns = min(columns, len(values))
    edges = [len(values) * n // columns for n in range(columns + 1)]
    means = [fmean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _move_handlers(until: ExitStack) -> None:
    """Let the log's lines pass through the view: handlers hold the stream that they were made with."""
    for logger in (logging.getLogger(), logging.getLogger("ray")):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
                handler.setStream(sys.stderr)
                until.callback(handler.setStream, sys.__stderr__)
