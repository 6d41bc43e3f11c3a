"""What the benchmarks of ingest and of starting make of what they meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ingest, startup
from benchmarks.machine import cpu_of, in_words, machine
from rayvideo.data.manifest import read_captioned
from rayvideo.data.prepared import clip_places
from rayvideo.data.video import read_clip
from rayvideo.menagerie.clips import training_scenes
from rayvideo.menagerie.world import FPS, FRAMES, SIZE, draw
from rayvideo.recipe import load_recipe


def test_phases_of_a_start_follow_what_the_job_printed() -> None:
    lines = [
        (3.0, "10:00:00 INFO starting Ray on this machine"),
        (5.0, "encoding clips: 0/160 clips in 00:00, ? left"),
        (9.0, "encoding clips: 8/160 clips in 00:04, 01:16 left, dropped=0"),
        (12.0, "encoding clips: 160/160 clips in 00:07, 00:00 left, dropped=0"),
        (13.0, "10:00:13 INFO embedding 2 captions of previews"),
        (14.0, "loading judges: 0/1 judges in 00:00, ? left"),
        (16.0, "fine-tuning: 0/1 steps in 00:00"),
        (16.5, "fine-tuning: starting workers"),
        (30.0, "fine-tuning: loading the model"),
        (34.0, "previews of the base: 0/6 clips in 00:00, ? left"),
        (40.0, "fine-tuning: first step (warming up)"),
        (44.0, "fine-tuning: 1/1 steps in 00:27, 4.0 s a step, 00:00 left, judge=0.1"),
        (44.5, "previews of step 1: 0/6 clips in 00:00, ? left"),
    ]
    found = startup.phases(lines)
    assert list(found.values()) == [5.0, 4.0, 4.0, 3.5, 13.5, 4.0, 6.0, 4.0]
    assert sum(found.values()) == 44.0
    with pytest.raises(ValueError, match="never came to the end of its first step"):
        startup.phases(lines[:-2])


def test_previews_that_follow_the_first_step_end_it() -> None:
    lines = [
        (30.0, "fine-tuning: loading the model"),
        (34.0, "fine-tuning: first step (warming up)"),
        (38.0, "previews of the base: 0/6 clips in 00:00, ? left"),
        (38.5, "fine-tuning: 1/1 steps in 00:27, 4.0 s a step, 00:00 left, judge=0.1"),
    ]
    assert list(startup.phases(lines).values()) == [30.0, 4.0, 4.0]


def test_a_start_is_compared_round_by_round() -> None:
    this, other = [{"imports": 2.0}, {"imports": 3.0}], [{"imports": 4.0}, {"imports": 12.0}]
    assert startup.table({"this": this, "other": other}).splitlines()[2] == "| imports | 2.5 | 8.0 | 0.38 |"
    assert startup.table({"this": this}).splitlines()[-1] == "| together | 2.5 |"


def test_the_pace_of_latents_leaves_out_the_start() -> None:
    assert ingest.pace([(30.0, 32), (10.0, 32), (20.0, 32)]) == (10.0, 3.2)
    with pytest.raises(ValueError, match="too few clips"):
        ingest.pace([(30.0, 32)])


def test_a_list_repeats_files_but_no_entry(tmp_path: Path) -> None:
    listing = tmp_path / "clips.txt"
    listing.write_text(ingest.listed([tmp_path / "a.mp4", tmp_path / "b.mp4"], 5))
    entries = read_captioned(listing, None, 0.0)
    assert [Path(entry["video"]).name for entry in entries] == ["a.mp4", "b.mp4", "a.mp4", "b.mp4", "a.mp4"]


@pytest.mark.parametrize("codec", ingest.CODECS)
def test_clips_of_every_codec_are_the_menageries(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "FILES", 1)
    (file,) = ingest.write_files(tmp_path / "clips", codec)
    ((scene, _),) = training_scenes(1, seed=100)
    read = read_clip(file, FRAMES, FPS, SIZE, SIZE) / 255
    assert abs(read - draw(scene)).mean() < 0.05


def test_the_plain_loop_makes_what_prepare_reads(tiny_pipeline: Path, tmp_path: Path) -> None:
    listing = tmp_path / "clips.txt"
    listing.write_text(ingest.listed(ingest.write_files(tmp_path / "files", ingest.QUICK[0])[:2], 3))
    overrides = [f"model.path={tiny_pipeline}", "data.batch_size=2", "data.frames=4"]
    recipe = load_recipe(ingest.RECIPE, [f"data.manifest={listing}", *overrides])
    ingest.plain(recipe, str(tmp_path / "out"))
    assert sorted(clip_places(str(tmp_path / "out"))) == [0, 1, 2]


def test_the_machine_is_named_by_its_processor() -> None:
    assert cpu_of("processor\t: 0\nmodel name\t: AMD EPYC 9354\nmodel name\t: other\n") == "AMD EPYC 9354"
    assert cpu_of("") == "unknown"
    assert machine()["cpu"] in in_words(machine())
