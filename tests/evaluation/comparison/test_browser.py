"""The page in a real browser: keys, votes that are kept, the file that is saved, a phone, and nothing from outside."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayvideo.evaluation.comparison.differences import differences
from rayvideo.evaluation.comparison.page import page
from rayvideo.evaluation.comparison.pairing import shared
from rayvideo.evaluation.comparison.votes import check_votes, read_votes, win_rates
from tests.browser import CHROMIUM, DRIVER, PATIENCE_S, Browser, browser
from tests.evaluation.comparison.folders import ODD, read, write_run

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser and its driver: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Path]]:
    folder = tmp_path_factory.mktemp("browser")
    with browser(folder) as opened:
        yield opened, folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder, "first", gain=0.1, colour=120)
    write_run(folder, "second", gain=0.2, colour=200)
    return folder


def write_page(storage: Path, seed: int) -> Path:
    """The page of both runs; another seed is another place for votes in the browser."""
    runs = read(storage, "first", "second")
    keys = shared(runs)
    path = storage / f"page-{seed}.html"
    path.write_text(page(runs, keys, differences(runs, keys), [], seed), encoding="utf-8")
    return path


def progress(window: Browser) -> str:
    return str(window.run("return document.getElementById('progress').textContent"))


def is_open(window: Browser) -> bool:
    return bool(window.run("return document.getElementById('blind').open"))


def wait_for_votes(folder: Path) -> Path:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if files := list(folder.glob("votes-*.json")):
            return files[0]
        time.sleep(0.1)
    raise TimeoutError("no votes were saved")


def test_a_vote_by_keys_is_kept_saved_and_counted(window: tuple[Browser, Path], storage: Path) -> None:
    shown, folder = window
    path = write_page(storage, seed=1)
    shown.open(path.as_uri())
    shown.click("#vote")
    assert progress(shown) == "1 of 3"
    shown.press("left", "down")
    assert progress(shown) == "3 of 3"
    shown.click("#undo")  # the button that is pressed last becomes disabled, and keys must go on working
    shown.click("#undo")
    assert progress(shown) == "1 of 3"
    # Vote for the second run where it is, which a person could only guess.
    sides = shown.run("return trials.map((trial) => (trial.left.run === 'second' ? 'left' : 'right'))")
    shown.press(sides[0], "escape")
    assert not is_open(shown)

    shown.open(path.as_uri())  # as on another day
    shown.click("#vote")
    assert progress(shown) == "2 of 3"
    shown.press("t", "backspace", sides[1])
    shown.click("[data-choice=tie]")
    said = shown.run("return document.getElementById('rates').textContent")
    assert said == "second over first: 83 % (31 % to 98 %) of 3 votes: 2 for it, 0 against, 1 ties"
    shown.press("left")  # there is nothing left to vote on
    shown.click("#save")

    saved = wait_for_votes(folder)
    votes = read_votes(str(saved))
    assert [vote.choice for vote in votes.votes] == [sides[0], sides[1], "tie"]
    assert ODD in {vote.caption for vote in votes.votes}
    assert votes.runs == {name: str(storage / name) for name in ("first", "second")}
    runs = read(storage, "first", "second")
    check_votes(str(saved), votes, runs)
    (rate,) = win_rates(runs, votes.votes)
    assert (rate.wins, rate.losses, rate.ties) == (2, 0, 1)
    assert f"{rate.share.value:.0%} ({rate.share.low:.0%} to {rate.share.high:.0%})" == "83% (31% to 98%)"


def test_each_side_shows_the_clip_that_is_voted_on(window: tuple[Browser, Path], storage: Path) -> None:
    shown, _ = window
    shown.open(write_page(storage, seed=2).as_uri())
    shown.click("#vote")
    for _ in range(3):
        labels = "['left', 'right'].map((side) => trials[votes.length][side].run)"
        assert shown.run(f"return {labels}.sort()") == ["first", "second"]
        # Of a clip, by the figure that names it, and of the side: the middle pixel's brightness.
        script = f"""
            const light = async (video) => {{
              while (video.readyState < 2) await new Promise((ready) => setTimeout(ready, 20));
              const canvas = new OffscreenCanvas(1, 1).getContext("2d");
              canvas.drawImage(video, 0, 0, 1, 1);
              return canvas.getImageData(0, 0, 1, 1).data[0];
            }};
            const label = {labels};
            return Promise.all(["left", "right"].map(async (side, n) => [label[n], await light(byId(side))]));
        """
        for label, light in shown.run(script):
            assert light == pytest.approx(121 if label == "first" else 201, abs=6)
        shown.press("right")


def test_clips_of_a_caption_begin_again_together(window: tuple[Browser, Path], storage: Path) -> None:
    shown, _ = window
    shown.open(write_page(storage, seed=7).as_uri())
    begun = """
        const videos = [...document.querySelectorAll(".clips figure")[0].querySelectorAll("video")];
        const next = (video) => new Promise((ready) => video.addEventListener("play", ready, { once: true }));
        await new Promise((ready) => (videos[0].ended ? ready() : videos[0].addEventListener("ended", ready)));
        await Promise.all(videos.map(next));
        return videos.map((video) => video.currentTime);
    """
    assert shown.run(begun) == [0, 0]


def test_nothing_names_the_runs_while_one_votes(window: tuple[Browser, Path], storage: Path) -> None:
    shown, _ = window
    shown.open(write_page(storage, seed=3).as_uri())
    shown.click("#vote")
    seen = shown.run("return document.getElementById('blind').innerText")
    assert "first" not in seen
    assert "second" not in seen
    box = "const box = byId('blind').getBoundingClientRect();"
    assert shown.run(box + "return box.width >= innerWidth && box.height >= innerHeight")


def test_a_phone_scrolls_one_way_only(window: tuple[Browser, Path], storage: Path) -> None:
    shown, _ = window
    shown.open(write_page(storage, seed=4).as_uri())
    shown.resize(360, 740)
    assert shown.run("return document.documentElement.scrollWidth <= innerWidth")
    shown.click("#vote")
    box = "const box = document.querySelector('[data-choice=right]').getBoundingClientRect();"
    width, height, right, bottom = shown.run(box + "return [box.width, box.height, box.right, box.bottom]")
    assert width >= 44
    assert height >= 44
    assert right <= 360
    assert bottom <= 740


def test_captions_stay_text_and_nothing_is_loaded(window: tuple[Browser, Path], storage: Path) -> None:
    shown, _ = window
    shown.errors()
    shown.open(write_page(storage, seed=5).as_uri())
    assert shown.run("return document.scripts.length") == 2
    captions = shown.run("return [...document.querySelectorAll('.clips figcaption')].map((one) => one.innerText)")
    assert captions[0].startswith(ODD)
    loaded = "return performance.getEntriesByType('resource').map((one) => one.name.slice(0, 20))"
    assert {name.partition(":")[0] for name in shown.run(loaded)} <= {"data"}
    # Were a caption to get through as HTML, the page's policy would still not let it run.
    shown.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    assert shown.run("return window.ran") is None
    refused = shown.errors()
    assert len(refused) == 1
    assert "Content Security Policy" in refused[0]


def test_a_browser_that_keeps_no_votes_says_so(window: tuple[Browser, Path], storage: Path) -> None:
    """As in MLflow's view of an artifact: a page without an origin has no storage."""
    shown, _ = window
    shown.open("data:text/html;base64," + base64.b64encode(write_page(storage, seed=6).read_bytes()).decode())
    shown.click("#vote")
    shown.press("left")
    assert progress(shown) == "2 of 3"
    assert "save them before you close it" in shown.run("return document.getElementById('kept').textContent")
