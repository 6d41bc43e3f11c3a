"""What a list of captions becomes, without a cluster: names, settings, files."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from rayvideo.data.video import read_clip
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.clipfolder import Index, Row, clip_file, settings
from rayvideo.evaluation.produce import Order, order, produce
from rayvideo.evaluation.writers import ClipWriter
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters, save_adapter
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.sections import Lora
from tests import tiny_wan

ODD = ["../../up", "/etc/passwd", 'it\'s "red" $(rm -rf /)', "🐈🐈", "x" * 500, "CON", "a\\b:c*?", "..", "été"]
SIZE = {"frames": 4, "height": 64, "width": 64}


@pytest.fixture
def recipe(tiny_pipeline: Path) -> Recipe:
    return made(tiny_pipeline)


def made(pipeline: Path, **evaluation: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": str(pipeline)},
            "data": {"manifest": "unused", **SIZE},
            "reward": {"judges": [{"name": "judge"}]},
            "training": {"precision": "fp32"},
            "evaluation": {"steps": 2, "batch_size": 2, **evaluation},
        }
    )


def listed(folder: Path, *captions: str) -> str:
    (folder / "list.jsonl").write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions))
    return str(folder / "list.jsonl")


def write(wanted: Order, out: Path) -> list[Row]:
    """All clips by one writer in this process, batch by batch."""
    writer = ClipWriter(wanted.recipe, wanted.adapter, wanted.merge, str(out))
    size, negative = wanted.recipe.evaluation.batch_size, wanted.recipe.model.negative_prompt
    captions = [negative, *(row.caption for row in wanted.rows)]
    table = dict(zip(captions, writer.embed(captions), strict=True))
    batches = [wanted.rows[i : i + size] for i in range(0, len(wanted.rows), size)]
    return [
        row
        for batch in batches
        for row in writer.write(batch, *(table[caption] for caption in (negative, *(one.caption for one in batch))))
    ]


def pixels(folder: Path, row: Row) -> Any:
    return read_clip(folder / str(row.file), 4, 8, 64, 64).astype(int)


def test_every_caption_gets_a_name_of_its_own_inside_the_folder(tmp_path: Path) -> None:
    names = [
        clip_file(caption, seed, steps, settings)
        for caption in [*ODD, *(f"{caption} " for caption in ODD)]
        for seed in (0, 1)
        for steps in (20, 50)
        for settings in ("a", "b")
    ]
    assert len(set(names)) == len(names) == 2 * len(ODD) * 8
    for name in names:
        folder, _, file = name.partition("/")
        assert folder == "clips"
        assert set(file) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert file[0] not in ".-_"
        assert len(file) < 110
    assert clip_file("Red cat", 3, 20, "a").startswith("clips/red-cat-s3-d20-")


def test_an_order_has_each_caption_once_for_every_seed_and_chain(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a|||red cat|||16\nb|||cow\nno separators\nc|||red cat\nd|||\n")
    wanted = order(made(tiny_pipeline, steps=[2, 3], seeds=[0, 7]), str(tmp_path / "list.txt"), None)
    assert [(row.name, row.caption, row.seed, row.steps) for row in wanted.rows] == [
        (name, caption, seed, steps)
        for steps in (2, 3)
        for name, caption in (("a", "red cat"), ("b", "cow"))
        for seed in (0, 7)
    ]
    assert (wanted.captions, wanted.repeated) == (2, 1)
    assert [row.caption for row in wanted.rejected] == ["no separators", "d"]
    assert "list.txt line 3: 1 fields" in str(wanted.rejected[0].reason)


def test_other_settings_give_other_files(recipe: Recipe, tiny_pipeline: Path, adapter: Path, tmp_path: Path) -> None:
    captions = listed(tmp_path, "red cat")
    files = {
        order(made(tiny_pipeline, guidance=5.0), captions, None).rows[0].file,
        order(made(tiny_pipeline, batch_size=7, workers=3), captions, None).rows[0].file,
        order(recipe, captions, None).rows[0].file,
        order(recipe, captions, str(adapter)).rows[0].file,
        order(recipe, captions, str(adapter), merge=True).rows[0].file,
    }
    assert len(files) == 4  # batch size and workers are no settings of a clip


def test_other_weights_of_a_transformer_give_other_files(tmp_path: Path) -> None:
    pipeline = tiny_wan.save_pipeline(tmp_path / "model", "A14B")
    names = set()
    for part in (None, "transformer", "transformer_2"):
        if part:
            tiny_wan.build_transformer().save_pretrained(pipeline / part)
        names.add(str(settings(made(pipeline), None, merge=False)["model"]))
    assert len(names) == 3


def test_refused_before_anything_starts(recipe: Recipe, tmp_path: Path) -> None:
    captions = listed(tmp_path, "red cat")
    with pytest.raises(EvaluationError, match="--merge needs an adapter"):
        order(recipe, captions, None, merge=True)
    with pytest.raises(EvaluationError, match=r"holds no adapter_config\.json"):
        order(recipe, captions, str(tmp_path))


def test_clips_are_what_the_reference_writes_whatever_their_captions(recipe: Recipe, tmp_path: Path) -> None:
    wanted = order(recipe, listed(tmp_path, *ODD), None)
    out = tmp_path / "deep" / "out"
    assert {row.status for row in write(wanted, out)} == {"done"}
    assert sorted(f"clips/{path.name}" for path in (out / "clips").iterdir()) == sorted(
        str(r.file) for r in wanted.rows
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "list.jsonl"]
    with av.open(str(out / str(wanted.rows[0].file))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(8)
        assert (stream.width, stream.height, len(list(container.decode(stream)))) == (64, 64, 4)


def test_order_and_company_leave_files_equal_to_the_byte(recipe: Recipe, tiny_pipeline: Path, tmp_path: Path) -> None:
    captions = listed(tmp_path, "red cat", "cow", "dog")
    wanted = order(recipe, captions, None)
    write(wanted, tmp_path / "a")
    write(replace(wanted, rows=wanted.rows[::-1]), tmp_path / "b")
    write(replace(wanted, rows=wanted.rows[1:2]), tmp_path / "c")
    for row in wanted.rows:
        assert (tmp_path / "a" / str(row.file)).read_bytes() == (tmp_path / "b" / str(row.file)).read_bytes()
    alone = str(wanted.rows[1].file)
    assert (tmp_path / "c" / alone).read_bytes() == (tmp_path / "a" / alone).read_bytes()

    single = order(made(tiny_pipeline, batch_size=1), captions, None)
    write(single, tmp_path / "d")
    for row in single.rows:  # another size of batch: last bits, which can move a value by one level
        assert np.abs(pixels(tmp_path / "d", row) - pixels(tmp_path / "a", row)).mean() < 0.1


def test_merged_equals_unmerged(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    captions = listed(tmp_path, "red cat", "cow")
    orders = [order(recipe, captions, None), *(order(recipe, captions, str(adapter), merge=m) for m in (False, True))]
    base, beside, inside = ([pixels(tmp_path, row) for row in write(each, tmp_path)] for each in orders)
    for number in range(2):
        assert np.abs(beside[number] - base[number]).mean() > 2
        assert np.abs(beside[number] - inside[number]).mean() < 0.1


def test_numbers_that_are_not_finite_are_reported(recipe: Recipe, tiny_pipeline: Path, tmp_path: Path) -> None:
    denoiser = add_lora(load_model(tiny_pipeline, parts=("denoiser",)).denoiser, Lora(), seed=0)
    for weight in lora_parameters(denoiser).values():
        torch.nn.init.constant_(weight, float("nan"))
    save_adapter(denoiser, tmp_path / "adapter")
    rows = write(order(recipe, listed(tmp_path, "red cat"), str(tmp_path / "adapter")), tmp_path)
    assert [(row.status, row.reason) for row in rows] == [("failed", "the model gave numbers that are not finite")]
    assert not (tmp_path / "clips").exists()


def test_a_clip_counts_only_with_its_line_and_its_file(recipe: Recipe, tmp_path: Path) -> None:
    wanted = order(recipe, listed(tmp_path, "red cat", "cow", "dog"), None)
    one, two, three = (str(row.file) for row in wanted.rows)
    (tmp_path / "clips").mkdir()
    for file in (one, three):
        (tmp_path / file).write_bytes(b"clip")
    (tmp_path / "clips" / f"_{Path(two).name}").write_bytes(b"half a clip")
    index = Index(str(tmp_path))
    index.add([*wanted.rows[:2], wanted.rows[2]._replace(status="failed", reason="no")])
    index.write()
    again = Index(str(tmp_path))
    assert [file in again for file in (one, two, three)] == [True, False, False]


def test_what_is_there_is_not_made_again(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a|||red cat\nb\n")
    wanted = order(recipe, str(tmp_path / "list.txt"), None)
    index = Index(str(tmp_path))
    index.add(write(wanted, tmp_path))
    index.write()
    summary = produce(wanted, str(tmp_path))  # would need a cluster if it made any
    assert (summary["clips"], summary["new_clips"], summary["rejected"], summary["failed"]) == (1, 0, 1, 0)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done", "rejected"]


def test_another_negative_prompt_is_another_clip(recipe, tmp_path):
    """And an empty one leaves names as they were before there could be one."""
    away = recipe.model_copy(update={"model": recipe.model.model_copy(update={"negative_prompt": "dull"})})
    assert not {"negative_prompt", "shift", "tiled_decoding"} & settings(recipe, None, merge=False).keys()
    both = [order(one, listed(tmp_path, "red cat"), None) for one in (recipe, away)]
    (plain,), (changed,) = (write(one, tmp_path) for one in both)
    assert plain.file != changed.file
    assert not np.array_equal(pixels(tmp_path, plain), pixels(tmp_path, changed))


def test_clips_that_are_decoded_in_tiles_have_names_of_their_own(recipe, tmp_path):
    tiled = recipe.model_copy(update={"model": recipe.model.model_copy(update={"tiled_decoding": True})})
    files = {order(one, listed(tmp_path, "red cat"), None).rows[0].file for one in (recipe, tiled)}
    assert len(files) == 2
