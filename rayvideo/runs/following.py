"""What the driver shows of a training, which runs in other processes: what it does and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from tqdm import tqdm

from rayvideo.progress import progress, step_progress
from rayvideo.runs.attempts import attempts_of
from rayvideo.runs.live import LiveView, unsaid
from rayvideo.runs.news import Board, News

EVERY_S = 0.5  # between looks at the board


@contextmanager
def following(board: Board, run_folder: str, steps: int, call_id: str) -> Iterator[None]:
    """While the block runs, show how many of `steps` are done, what they reach, and what takes the time.

    On a terminal that is one view, which stays in its place; in a log, lines now and then. It also tells when the
    workers of this call of `finetune` were started again, or passed over a checkpoint.
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
    view: View | LiveView = LiveView(steps) if sys.stderr.isatty() else View(steps)
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
    """What a log shows: lines with the steps, and with what takes the time between them."""

    def __init__(self, steps: int) -> None:
        self._bar = step_progress("fine-tuning", steps)
        self._phase = ""
        self._said: list[str] = []
        self._counted: tqdm | None = None

    def show(self, news: News) -> None:
        """Tell what is new."""
        for line in unsaid(self._said, news.said):
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

    def say(self, text: str) -> None:
        """Print a line."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Tell the last state."""
        self._end()
        self._bar.close()

    def _begin(self, news: News) -> None:
        self._end()
        self._phase = news.phase
        if news.phase and not news.total:
            self.say(f"fine-tuning: {news.phase}")
        if news.total:
            self._counted = progress(news.phase, news.total)

    def _end(self) -> None:
        if self._counted:
            self._counted.close()
        self._counted = None
