"""A person's blind votes: the file that the page hands out, and what it says about the runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import ValidationError

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.comparison.runs import Key, Run
from rayvideo.evaluation.comparison.trials import Trial
from rayvideo.evaluation.paired import CONFIDENCE, Estimate
from rayvideo.sections.base import Section
from rayvideo.storage import is_file, read_bytes


class Vote(Trial):
    """What a person said of two clips."""

    choice: Literal["left", "right", "tie"]


class Votes(Section):
    """The file."""

    version: Literal[1]
    seed: int
    runs: dict[str, str]
    """Label -> what finds the run on the command line."""
    votes: tuple[Vote, ...]


class WinRate(NamedTuple):
    """One run against another."""

    run: str
    over: str
    wins: int
    losses: int
    ties: int

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def share(self) -> Estimate:
        """Of votes that `run` won; a tie is half of one."""
        return wilson(self.wins + self.ties / 2, self.votes)

    def __str__(self) -> str:
        share = self.share
        return (
            f"{self.run} over {self.over}: {share.value:.0%} ({share.low:.0%} to {share.high:.0%}) of {self.votes} "
            f"blind votes: {self.wins} for it, {self.losses} against, {self.ties} ties"
        )


def read_votes(path: str) -> Votes:
    """Read one person's votes.

    Raises:
        EvaluationError: there is no such file, or it is none that the page hands out.
    """
    if not is_file(path):
        raise EvaluationError(f"--votes {path!r} is not a file; it is what the page's button 'Save votes' downloads")
    try:
        return Votes.model_validate_json(read_bytes(path), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise EvaluationError(
            f"--votes {path!r} is no file of votes ({where + ': ' if where else ''}{fault['msg']}); save the votes "
            "again from the page"
        ) from None


def check_votes(path: str, votes: Votes, runs: Sequence[Run]) -> None:
    """Refuse votes on other clips than those that are compared.

    Raises:
        EvaluationError: naming the first of them.
    """
    there = {(run.label, clip.digest, key) for run in runs for key, clip in run.clips.items()}
    for number, vote in enumerate(votes.votes, 1):
        for side in (vote.left, vote.right):
            if (side.run, side.clip, Key(vote.caption, vote.seed, vote.steps)) not in there:
                raise EvaluationError(
                    f"--votes {path!r}: vote {number} is on a clip that {side.run!r} does not have (caption "
                    f"{vote.caption!r}, seed {vote.seed}); the runs were evaluated anew or are others: vote on "
                    "their page"
                )


def win_rates(runs: Sequence[Run], votes: Iterable[Vote]) -> list[WinRate]:
    """Each run against each one before it, of those that somebody voted on."""
    won = Counter((vote.left.run, vote.right.run, vote.choice) for vote in votes)
    found = []
    for earlier, later in combinations([run.label for run in runs], 2):
        wins = won[later, earlier, "left"] + won[earlier, later, "right"]
        losses = won[earlier, later, "left"] + won[later, earlier, "right"]
        found.append(WinRate(later, earlier, wins, losses, won[later, earlier, "tie"] + won[earlier, later, "tie"]))
    return [rate for rate in found if rate.votes]


def wilson(wins: float, n: int) -> Estimate:
    """A share of n votes, 1 or more, with Wilson's score interval; a tie is half a win."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = wins / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, middle - half, middle + half)
