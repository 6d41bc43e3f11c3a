"""The page without a browser: whole, safe, self-contained; the blind trials, and the votes that come back."""

from __future__ import annotations

import base64
import html
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from rayvideo.data.video import read_clip
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.comparison.differences import differences
from rayvideo.evaluation.comparison.page import page
from rayvideo.evaluation.comparison.pairing import shared
from rayvideo.evaluation.comparison.runs import Run
from rayvideo.evaluation.comparison.trials import trials
from rayvideo.evaluation.comparison.votes import Vote, Votes, check_votes, read_votes, win_rates
from tests.evaluation.comparison.folders import MANY, ODD, read, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    write_run(tmp_path, "first", colour=120, captions=MANY)
    write_run(tmp_path, "second", gain=0.2, colour=200, lr=5e-5, captions=MANY)
    return read(tmp_path, "first", "second")


def drawn(runs: list[Run]) -> str:
    keys = shared(runs)
    return page(runs, keys, differences(runs, keys), [], 0)


def test_page_is_whole_safe_and_self_contained(runs: list[Run], tmp_path: Path) -> None:
    text = drawn(runs)
    assert text.count("<script") == 2
    assert ODD in html.unescape(text)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[\w/.]""", text.partition("<script>")[0])
    for piece in ("+0.1000", "▲ better", "▼ worse", "higher in 100 %", "training.lr", "5e-05", "held-out judge"):
        assert piece in text, piece
    assert "tracking.run_name" not in text
    clips = [base64.b64decode(clip) for clip in re.findall(r"data:video/mp4;base64,([\w+/=]+)", text)]
    assert len(clips) == 12  # of six captions with the first seed
    (tmp_path / "again.mp4").write_bytes(clips[1])
    assert read_clip(tmp_path / "again.mp4", 4, 8, 32, 32).mean() == pytest.approx(200, abs=3)


def test_curves_share_a_scale(runs: list[Run]) -> None:
    lines = re.findall(r'class="raw" points="([^"]+)"', drawn(runs))
    assert len(lines) == 4  # reward and judge of two runs
    first, second = ([float(point.split(",")[1]) for point in line.split()] for line in lines[:2])
    assert (second[-1], first[0]) == (0, 240)  # the highest reward is the second's, the lowest the first's
    assert first[-1] == pytest.approx(240 - (0.5 - 0.1) / (1.0 - 0.1) * 240, abs=0.1)


def test_without_kept_clips_the_figures_are_shown(runs: list[Run]) -> None:
    runs[1].clips.clear()
    text = drawn(runs)
    assert "<video data-clip" not in text
    assert "No clip is kept in every run" in text
    assert "▲ better" in text


def test_trials_are_shuffled_by_the_seed_and_even(tmp_path: Path) -> None:
    captions = [f"cat {n}" for n in range(20)]
    for name in ("first", "second", "third"):
        write_run(tmp_path, name, captions=captions, seeds=(0,))
    runs = read(tmp_path, "first", "second", "third")
    made = trials(runs, shared(runs), seed=3)
    assert made == trials(runs, shared(runs), seed=3)
    assert made != trials(runs, shared(runs), seed=4)
    assert len({frozenset((trial.caption, trial.left.run, trial.right.run)) for trial in made}) == 60
    sides = Counter((trial.left.run, trial.right.run) for trial in made)
    assert set(sides.values()) == {10}  # each run stands on the left in half of its pair's trials
    assert [trial.caption for trial in made[:20]] != captions


def test_win_rates_are_of_runs_not_of_sides(runs: list[Run]) -> None:
    kept = [key for key in shared(runs) if key in runs[0].clips]
    one, two, three, *_ = trials(runs, kept, seed=0)
    better = {trial: "left" if trial.left.run == "second" else "right" for trial in (one, two)}
    worse = {trial: "right" if side == "left" else "left" for trial, side in better.items()}
    given = [(one, better[one]), (one, better[one]), (two, better[two]), (two, worse[two]), (three, "tie")]
    (rate,) = win_rates(runs, [Vote(**trial.model_dump(), choice=choice) for trial, choice in given])
    assert (rate.run, rate.over) == ("second", "first")
    assert (rate.wins, rate.losses, rate.ties, rate.share.value) == (3, 1, 1, 0.7)
    assert str(rate).startswith("second over first: 70% (")
    assert win_rates(runs, []) == []


def test_votes_on_other_clips_are_refused(runs: list[Run], tmp_path: Path) -> None:
    kept = [key for key in shared(runs) if key in runs[0].clips]
    given = tuple(Vote(**trial.model_dump(), choice="left") for trial in trials(runs, kept, seed=0))
    votes = Votes(version=1, seed=0, runs={run.label: run.side.word for run in runs}, votes=given)
    file = tmp_path / "votes.json"
    file.write_text(votes.model_dump_json())
    assert read_votes(str(file)) == votes
    check_votes(str(file), votes, runs)
    write_run(tmp_path, "second", colour=90, captions=MANY)  # evaluated anew
    with pytest.raises(EvaluationError, match="vote 1 is on a clip that 'second' does not have.*vote on their page"):
        check_votes(str(file), votes, read(tmp_path, "first", "second"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file; it is what the page's button"),
        ("{", "is no file of votes"),
        (json.dumps({"version": 2, "seed": 0, "runs": {}, "votes": []}), "version: Input should be 1"),
        (json.dumps({"version": 1, "seed": 0, "runs": {}, "votes": [{"choice": "up"}]}), "votes.0.caption"),
    ],
)
def test_what_is_no_file_of_votes_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "votes.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_votes(str(file))
