"""What the driver shows of a training, which runs in other processes: what it does and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from tqdm import tqdm

from rayvideo.progress import progress, step_progress
from rayvideo.runs.attempts import attempts_of
from rayvideo.runs.news import Board, News

EVERY_S = 0.5  # between looks at the board


@contextmanager
def following(board: Board, run_folder: str, steps: int, call_id: str) -> Iterator[None]:
    """While the block runs, show a bar with how many of `steps` are done and the judges' raw scores.

    Between steps it says what takes the time. It also tells when the workers of this call of `finetune` were started
    again, or passed over a checkpoint.
    """
    done = Event()
    thread = Thread(target=_follow, args=(board, run_folder, steps, call_id, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        board.clear()


def _follow(board: Board, run_folder: str, steps: int, call_id: str, done: Event) -> None:
    view = View(steps)
    finished, told, attempt = False, 0, 0
    while not finished:
        finished = done.wait(EVERY_S)  # once it is set there is one more look, which sees the last step
        news = board.read()
        if news.attempt != attempt:
            attempt = news.attempt
            attempts = [one for one in attempts_of(run_folder) if one.call == call_id]
            for number, one in enumerate(attempts[told:], told):
                if number or one.refused:
                    view.say(f"training goes on {one}")
            told = len(attempts)
        view.show(news)
    view.close()


class View:
    """A bar of steps, and below it a bar of what takes the time at the moment, if that can be counted.

    On a terminal the second one disappears when that ends.
    """

    def __init__(self, steps: int) -> None:
        self._bar = step_progress("fine-tuning", steps)
        self._phase = ""
        self._said: list[str] = []
        self._counted: tqdm | None = None

    def show(self, news: News) -> None:
        """Bring the bars up to what is known now."""
        for line in news.said[len(self._said) if news.said[: len(self._said)] == self._said else 0 :]:
            self.say(line)
        self._said = news.said
        if news.step is not None:
            self._bar.pace = news.pace
            self._bar.set_postfix({judge: f"{score:.4f}" for judge, score in news.scores.items()}, refresh=False)
            self._bar.update(news.step - self._bar.n)
        if news.phase != self._phase:
            self._begin(news)
        if self._counted:
            self._counted.update(news.done - self._counted.n)
        if sys.stderr.isatty():
            self._bar.refresh()  # the seconds go on, which shows that the driver is alive

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bars."""
        self._end()
        self._bar.close()

    def _begin(self, news: News) -> None:
        self._end()
        self._phase = news.phase
        uncounted = news.phase and not news.total
        if sys.stderr.isatty():
            self._bar.set_description_str(f"fine-tuning, {news.phase}" if uncounted else "fine-tuning", refresh=False)
        elif uncounted:
            self.say(f"fine-tuning: {news.phase}")
        if news.total:
            self._counted = progress(news.phase, news.total, leave=False)

    def _end(self) -> None:
        if self._counted:
            self._counted.close()
        self._counted = None
