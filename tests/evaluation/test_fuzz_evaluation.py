"""Captions from outside: what they become in file names, in MLflow's names and in the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.captions import Prompt, file_name
from rayvideo.evaluation.clipfolder import Index, clip_file
from rayvideo.evaluation.report import write_report
from rayvideo.recipe import parse_recipe
from rayvideo.storage import StorageError, read_summary
from rayvideo.tracking import Tracker, create_run, metric_name
from tests.evaluation.test_report import comparison

captions = st.text(max_size=80) | st.sampled_from(
    ["", "..", "../../up", "/", "a/../b", "x" * 3000, "-rf", "$(id)", "\0"]
)


@given(st.lists(st.tuples(captions, st.integers(0, 3), st.integers(1, 3)), unique=True, max_size=20))
def test_clips_have_names_of_their_own_inside_the_folder(made: list[tuple[str, int, int]]) -> None:
    files = [clip_file(caption, seed, steps, "settings") for caption, seed, steps in made]
    assert len(set(files)) == len(files)
    assert files == [clip_file(caption, seed, steps, "settings") for caption, seed, steps in made]
    shown = [file_name(number, Prompt("set", caption, seed)) for number, (caption, seed, _) in enumerate(made)]
    assert [int(name.partition("-")[0]) for name in shown] == list(range(len(made)))
    for name in [*(file.removeprefix("clips/") for file in files), *shown]:
        assert len(name.encode()) <= 255
        assert name[0] not in ".-"
        assert not set(name) & set("/\\\0 \"'`$&;|<>*?")


@given(captions)
def test_metric_names_are_no_paths(name: str) -> None:
    parts = metric_name(name).split("/")
    assert 0 < len(metric_name(name)) <= max(1, len(name))
    assert not {"", ".", ".."} & set(parts)
    assert metric_name(metric_name(name)) == metric_name(name)


def test_mlflow_takes_what_a_recipe_and_a_caption_may_say(tmp_path: Path) -> None:
    options = {"a/../b": 1, "a!": 2, "a?": 3, "..": 4, "": 5, "x" * 300: 6}
    recipe = parse_recipe(
        {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge", "options": options}]},
            "storage": str(tmp_path),
        }
    )
    tracker = Tracker(create_run(recipe, tmp_path / "run"))
    tracker.log(1, {f"eval/{name}": 1.0 for name in ("../../up", "", "/", "a//b", "é")})
    tracker.finish()


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_caption_is_text_in_the_report(tmp_path: Path) -> None:
    """Whatever it says, no element and no attribute comes into the page by it."""
    evil = "</figcaption><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' {{ 7 * 7 }} {% raw"
    pages = []
    for caption in ("a cat", evil):
        recipe = parse_recipe(
            {
                "model": {"path": caption},
                "data": {"manifest": "clips.txt"},
                "reward": {"judges": [{"name": "judge", "options": {caption: caption}}]},
                "evaluation": {"judges": [{"name": "held_out"}], "sets": {"in_domain": caption, "new": "b"}},
            }
        )
        compared = comparison(tmp_path)
        compared.previews[0].prompt = compared.previews[0].prompt._replace(caption=caption)
        pages.append(Page(write_report(tmp_path, recipe, compared, {"adapter": caption}).read_text()))
    plain, attacked = pages
    assert evil in attacked.text
    assert attacked.elements == plain.elements
    assert attacked.attributes == plain.attributes
    assert "script" not in attacked.elements


ROW = {"file": "clips/a.mp4", "name": "a", "caption": "a", "seed": 0, "steps": 2, "adapter": None, "settings": "s"}


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"file": "a"}', '{"file": [1], "more": 2}', "[" * 10_000, "\ufeff{}"]
)
def test_an_index_that_is_damaged_is_named_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"clip")
    good = json.dumps({**ROW, "status": "done"})
    outside = json.dumps({**ROW, "file": "../../outside.mp4", "status": "done"})
    (tmp_path / "index.jsonl").write_text(f"{good}\n\n{outside}\n")
    index = Index(str(tmp_path))
    assert "clips/a.mp4" in index
    assert "../../outside.mp4" not in index
    (tmp_path / "index.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(EvaluationError, match=r"index\.jsonl line 2 is no entry of an index"):
        Index(str(tmp_path))


def test_a_summary_that_is_damaged_is_named(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 10_000):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(StorageError, match=r"summary\.json is damaged .* move it away"):
            read_summary(str(tmp_path))
