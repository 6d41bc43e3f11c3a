"""Embeddings without the zeros that fill them up: stored so, and read as they were."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rayvideo.data.encoders import CaptionEncoder
from rayvideo.data.prepared import open_prepared
from rayvideo.data.table import LatentTable, _Rows
from rayvideo.data.tasks import FORMAT, tensor_array
from rayvideo.data.trimmed import Trimmed
from rayvideo.evaluation.previews import embed_shown
from rayvideo.models import load_model
from rayvideo.recipe import Recipe, parse_recipe
from tests import tiny_cogvideox, tiny_wan
from tests.prepared import CAPTIONS, save_prepared

LONGEST = "cat " * 600
"""More tokens than a text tower takes."""
SPOKEN = [*CAPTIONS[:3], LONGEST]


def bits(embeddings: Tensor) -> Tensor:
    return embeddings.view(torch.int32)


def recipe_for(model: Path, folder: Path, **more: Any) -> Recipe:
    data = {"prepared": str(folder), "frames": 5, "height": 64, "width": 64}
    return parse_recipe(
        {"model": {"path": str(model)}, "data": data, "reward": {"judges": [{"name": "judge"}]}, **more}
    )


def opened(recipe: Recipe) -> LatentTable:
    """A prepared folder of three clips whose captions the encoder of jobs/prepare.py embedded."""
    folder = Path(str(recipe.data.prepared))
    save_prepared(recipe, SPOKEN)
    table = CaptionEncoder(recipe.model, "cpu")(pa.table({"caption": SPOKEN}))
    pq.write_table(table, folder / "captions.parquet", row_group_size=1, **FORMAT)
    return open_prepared(recipe)


@pytest.mark.parametrize(
    ("build", "length", "smaller"),
    [(tiny_wan, 512, True), (tiny_cogvideox, 226, False)],
    ids=["zeros behind the text", "numbers behind it"],
)
def test_a_batch_of_short_and_long_captions_is_what_the_text_tower_said(
    tmp_path: Path, build: Any, length: int, smaller: bool
) -> None:
    recipe = recipe_for(build.save_pipeline(tmp_path / "model"), tmp_path / "latents")
    table = opened(recipe)
    model = load_model(recipe.model.path, parts=("text",))
    expected = model.encode_prompts(SPOKEN)
    assert expected[3].any(dim=1).all(), "it fills every row"
    assert (not expected[0, -1].any()) == smaller
    batch = table.rows([0, 1, 2])
    assert batch.captions == SPOKEN[1:]
    assert batch.embeddings.shape == (3, *model.prompt_shape) == (3, length, build.TEXT_WIDTH)
    assert torch.equal(bits(batch.embeddings), bits(expected[1:]))
    assert torch.equal(bits(table.unconditional()), bits(expected[:1]))  # the empty prompt's
    assert torch.equal(pickle.loads(pickle.dumps(table)).rows([0]).embeddings, expected[1:2])
    captions = Path(str(recipe.data.prepared), "captions.parquet")
    whole = pa.table({"caption": SPOKEN, "embedding": tensor_array(expected.numpy())})
    pq.write_table(whole, tmp_path / "whole.parquet", row_group_size=1, **FORMAT)
    now, before = captions.stat().st_size, (tmp_path / "whole.parquet").stat().st_size
    assert (now < 0.5 * before) if smaller else (0.9 * before < now < 1.1 * before)


def test_folders_with_whole_embeddings_are_still_read(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path / "model", tmp_path / "latents")
    save_prepared(recipe)
    written = pq.read_table(tmp_path / "latents" / "captions.parquet")["embedding"].combine_chunks()
    assert isinstance(written.type, pa.FixedShapeTensorType)
    assert np.array_equal(open_prepared(recipe).rows([0, 1, 2]).embeddings, written.to_numpy_ndarray()[1:])


def test_rows_that_are_kept_in_memory_are_counted_whole(tmp_path: Path) -> None:
    """The empty prompt's embedding is the first that is read, and by far the smallest that is stored."""
    recipe = recipe_for(tiny_wan.save_pipeline(tmp_path / "model"), tmp_path / "latents")
    rows: _Rows = opened(recipe)._embeddings
    assert rows.read.cache_info().maxsize == 256 * 2**20 // (512 * tiny_wan.TEXT_WIDTH * 4)


@pytest.mark.parametrize("used", [0, 1, 3, 4])
def test_only_rows_of_zeros_at_the_end_are_left_out(used: int) -> None:
    embedding = np.zeros((4, 3), np.float32)
    embedding[:used, 1] = 1
    embedding[:1] = 0  # not at the end, unless there is nothing behind it
    trimmed = Trimmed.of(embedding)
    assert trimmed.values.size == 3 * (used if used > 1 else 0)
    assert trimmed.whole().tobytes() == embedding.tobytes()


def test_no_bit_is_lost() -> None:
    embedding = np.zeros((4, 3), np.float32)
    embedding[2, 0] = -0.0
    assert Trimmed.of(embedding).whole().tobytes() == embedding.tobytes()
    assert Trimmed.of(embedding.T).whole().tobytes() == np.ascontiguousarray(embedding.T).tobytes()


def test_embeddings_of_previews_are_sent_without_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("red cat\n")
    model = tiny_wan.save_pipeline(tmp_path / "model")
    recipe = recipe_for(model, tmp_path, evaluation={"sets": {"in": str(tmp_path / "captions.txt")}})
    embeddings = embed_shown(recipe)
    whole = load_model(model, parts=("text",)).encode_prompts([*embeddings])
    assert set(embeddings) == {"", "red cat"}
    assert len(pickle.dumps(embeddings)) < 0.1 * whole.nbytes
    for found, expected in zip(embeddings.values(), whole, strict=True):
        assert torch.equal(bits(torch.from_numpy(found.whole())), bits(expected))
