"""From a list of clips to latents, through a real Ray Data on real files."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch

from rayvideo.data.latents import open_latents, prepare_to, stream
from rayvideo.data.table import DataError, LatentTable
from rayvideo.data.video import read_clip, write_clip
from rayvideo.errors import RecipeError
from rayvideo.models import load_model
from rayvideo.recipe import Recipe, parse_recipe
from tests import tiny
from tests.clips import CAPTIONS, ball

pytestmark = pytest.mark.usefixtures("ray_cluster")


def recipe_for(model: Path, **data) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": str(model)},
            "data": {"height": 64, "width": 64, "batch_size": 2, "decode_cpus": 0.5} | data,
            "reward": {"judges": [{"name": "judge"}]},
        }
    )


@pytest.fixture(scope="module")
def clips(tiny_clips, tmp_path_factory) -> Path:
    """The tiny clips, listed together with one that is not there (yet), one without a caption and one too short."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(tiny_clips, folder, dirs_exist_ok=True)
    write_clip(folder / "short.mp4", ball(9, frames=15))
    listed = (folder / "list.txt").read_text()
    (folder / "list.txt").write_text(f"late.mp4|||late ball\n{listed}\nball3.mp4|||\nshort.mp4|||ball")
    return folder


@pytest.fixture(scope="module")
def recipe(tiny_pipeline, clips) -> Recipe:
    return recipe_for(tiny_pipeline, manifest=str(clips / "list.txt"), max_bad_fraction=0.5)


@pytest.fixture(scope="module")
def folder(recipe, ray_cluster, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "latents"
    prepare_to(recipe, str(out))
    return out


@pytest.fixture(scope="module")
def table(tiny_pipeline, folder) -> LatentTable:
    return open_latents(recipe_for(tiny_pipeline, prepared=str(folder)))


def test_the_summary_counts(folder):
    summary = json.loads((folder / "summary.json").read_text())
    counted = {key: summary[key] for key in ("finished", "clips", "new_clips", "rejected", "captions")}
    embedded = {"", "late ball", "ball", *CAPTIONS}
    assert counted == {"finished": True, "clips": 6, "new_clips": 6, "rejected": 3, "captions": len(embedded)}
    assert sorted(pq.read_table(folder / "captions.parquet")["caption"].to_pylist()) == sorted(embedded)


def test_bad_clips_are_listed_with_their_reasons(folder, table):
    rejected = {Path(r["video"]).name: r["reason"] for r in map(json.loads, (folder / "rejected.jsonl").open())}
    assert rejected.pop("late.mp4").startswith("unreadable: No such file")
    assert rejected.pop("short.mp4").startswith("too short: it lasts 1.88 s")
    assert rejected == {"ball3.mp4": "no caption"}
    assert {Path(clip.video).name for clip in table.rejected} == {"late.mp4", "short.mp4", "ball3.mp4"}


def test_rows_are_what_the_model_makes_of_the_clips(tiny_pipeline, tiny_clips, table):
    assert len(table) == len(CAPTIONS)
    batch = table.rows([5, 0])
    assert batch.ids == [6, 1]  # the list's first clip is missing
    assert batch.captions == [CAPTIONS[5], CAPTIONS[0]]
    assert [Path(video).name for video in batch.videos] == ["ball5.mp4", "ball0.mp4"]
    model = load_model(tiny_pipeline, parts=("vae", "text"))
    pixels = [torch.from_numpy(read_clip(tiny_clips / f"ball{i}.mp4", 16, 8, 64, 64)) for i in (5, 0)]
    posterior = model.encode_frames(torch.stack(pixels).permute(0, 1, 4, 2, 3) / 255)
    torch.testing.assert_close(batch.mean, posterior.mean)
    torch.testing.assert_close(batch.logvar, posterior.logvar)
    torch.testing.assert_close(batch.embeddings, model.encode_prompts(batch.captions))
    torch.testing.assert_close(table.unconditional(), model.encode_prompts([""]))


def test_files_are_plain_parquet(folder, table):
    shard = pq.read_table(sorted((folder / "clips").iterdir())[0])
    assert shard.schema.names == ["id", "video", "caption", "mean", "logvar"]
    order = [shard["id"].to_pylist().index(number) for number in range(1, 7)]
    means = shard["mean"].combine_chunks().to_numpy_ndarray()[order]
    assert means.shape == (6, 4, 16, 8, 8)
    torch.testing.assert_close(torch.tensor(means), table.rows(range(6)).mean)


def test_straight_from_the_manifest_gives_the_same_numbers(recipe, table):
    streamed = stream(recipe)

    @ray.remote
    def read(table: LatentTable) -> object:
        return table.rows(range(len(CAPTIONS))), table.unconditional()

    # Read where a trainer reads: in another process, from a table that travelled there.
    batch, unconditional = ray.get(read.remote(streamed))
    expected = table.rows(range(len(CAPTIONS)))
    assert (batch.ids, batch.videos, batch.captions) == (expected.ids, expected.videos, expected.captions)
    for name in ("mean", "logvar", "embeddings"):
        torch.testing.assert_close(getattr(batch, name), getattr(expected, name))
    torch.testing.assert_close(unconditional, table.unconditional())
    assert sorted(streamed.rejected) == sorted(table.rejected)


def test_a_table_from_files_can_be_pickled(table):
    copy = pickle.loads(pickle.dumps(table))
    torch.testing.assert_close(copy.rows([1, 2]).mean, table.rows([1, 2]).mean)


def test_a_rerun_encodes_only_what_is_missing(tiny_pipeline, recipe, clips, folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    written = {file: file.stat().st_mtime_ns for file in [*(out / "clips").iterdir(), out / "captions.parquet"]}
    (out / "clips" / "_000000000.parquet").write_bytes(b"half a shard of a killed run")
    write_clip(clips / "late.mp4", ball(8))
    try:
        summary = prepare_to(recipe, str(out))
    finally:
        (clips / "late.mp4").unlink()
    assert (summary["clips"], summary["new_clips"], summary["rejected"]) == (7, 1, 2)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    table = open_latents(recipe_for(tiny_pipeline, prepared=str(out)))
    batch = table.rows(range(7))
    assert (batch.ids, batch.captions[0]) == (list(range(7)), "late ball")
    assert {Path(clip.video).name for clip in table.rejected} == {"ball3.mp4", "short.mp4"}


@pytest.mark.parametrize("mode", [lambda recipe, out: prepare_to(recipe, str(out)), lambda recipe, out: stream(recipe)])
def test_too_many_bad_clips_stop_the_run(tiny_pipeline, tiny_clips, tmp_path, mode):
    lines = (tiny_clips / "list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join([*lines, *(f"gone{n}.mp4|||ball" for n in range(2))]))
    recipe = recipe_for(tiny_pipeline, manifest=str(tmp_path / "list.txt"), root=str(tiny_clips), max_bad_fraction=0.2)
    with pytest.raises(DataError) as error:
        mode(recipe, tmp_path / "out")
    assert "2 of 8 clips are bad" in str(error.value)
    assert "data.max_bad_fraction" in str(error.value)
    assert "gone0.mp4: unreadable: No such file" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 8}, "data.frames 16, not 8"),
        ({"fps": 4.0}, "data.fps 8.0, not 4.0"),
        ({"height": 32, "width": 32}, "data.height 64, not 32"),
    ],
)
def test_a_folder_of_another_recipe_is_refused(tiny_pipeline, clips, folder, change, words):
    before = (folder / "summary.json").read_text()
    with pytest.raises(DataError, match=words):
        prepare_to(
            recipe_for(tiny_pipeline, manifest=str(clips / "list.txt"), max_bad_fraction=0.5, **change), str(folder)
        )
    with pytest.raises(DataError, match=words):
        open_latents(recipe_for(tiny_pipeline, prepared=str(folder), **change))
    assert (folder / "summary.json").read_text() == before


def test_a_folder_of_another_list_or_model_or_nobody_is_refused(tiny_pipeline, tiny_clips, folder, tmp_path):
    recipe = recipe_for(tiny_pipeline, manifest=str(tiny_clips / "list.txt"))
    with pytest.raises(DataError, match="another list of clips"):
        prepare_to(recipe, str(folder))
    other = tiny.save_pipeline(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="another VAE or text tower"):
        open_latents(recipe_for(other, prepared=str(folder)))
    with pytest.raises(DataError, match="is not empty and not of jobs/prepare.py"):
        prepare_to(recipe, str(tiny_clips))
    with pytest.raises(DataError, match=r"no folder that jobs/prepare\.py wrote"):
        open_latents(recipe_for(tiny_pipeline, prepared=str(tiny_clips)))
    with pytest.raises(RecipeError, match=r"data\.manifest: required"):
        prepare_to(recipe_for(tiny_pipeline, prepared=str(folder)), str(tmp_path / "new"))


def test_an_unfinished_folder_is_refused(tiny_pipeline, folder, tmp_path):
    summary = json.loads((folder / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    with pytest.raises(DataError, match="not finished; run jobs/prepare.py again"):
        open_latents(recipe_for(tiny_pipeline, prepared=str(tmp_path)))


def test_the_job(tiny_pipeline, tiny_clips, tmp_path):
    """The command itself, with a Ray of its own and a model family beside the recipe: once as it should be, and with a
    list and a class that are not there.
    """
    (tmp_path / "silent_family.py").write_text(
        "from rayvideo.models.modelscope import ModelScope\n\n\nclass Silent(ModelScope):\n"
        "    def encode_prompts(self, prompts):\n        return 0 * super().encode_prompts(prompts)\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{path: '{tiny_pipeline}', family: 'silent_family:Silent'}}\n"
        f"data: {{manifest: '{tiny_clips / 'list.txt'}', height: 64, width: 64}}\n"
        "reward: {judges: [{name: judge}]}\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "jobs/prepare.py", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    done = subprocess.run([*command, "data.batch_size=3"], capture_output=True, text=True, check=True)
    report, following = done.stdout.splitlines()[-2:]
    assert report.startswith(f"{out}: 6 clips (6 new) and 5 captions")
    assert following.endswith(f"data.batch_size=3 data.manifest=null data.prepared={out}")
    assert "encoding clips: 6/6 clips" in done.stderr
    assert json.loads((out / "summary.json").read_text())["finished"]
    embedded = pq.read_table(out / "captions.parquet")["embedding"].to_pylist()
    assert not any(value for one in embedded for value in one["values"]), "the encoders ran another family"
    with pytest.raises(DataError, match=r"another VAE or text tower, or by another model\.family"):
        open_latents(recipe_for(tiny_pipeline, prepared=str(out)))

    for override, words in (
        ("data.manifest=nowhere.txt", "error: nowhere.txt does not exist"),
        ("model.family=silent_family:Loud", "error: model.family 'silent_family:Loud' can't be imported: module"),
    ):
        failed = subprocess.run([*command, override], capture_output=True, text=True, check=False)
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1].startswith(words)
        assert "Traceback" not in failed.stderr
