"""The folder of jobs/prepare.py: what it must have been prepared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayvideo.data.manifest import read_manifest
from rayvideo.data.prepared import digest, fingerprint, list_digest, open_prepared, write_summary
from rayvideo.data.table import DataError
from rayvideo.recipe import Recipe, parse_recipe
from tests.prepared import CAPTIONS, save_prepared


def recipe_for(folder: Path, **model: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "a/model", **model},
            "data": {"prepared": str(folder), "frames": 4},
            "reward": {"judges": [{"name": "judge"}]},
        }
    )


def test_the_negative_prompt_is_part_of_it(tmp_path):
    away, plain = recipe_for(tmp_path, negative_prompt=CAPTIONS[1]), recipe_for(tmp_path)
    save_prepared(plain)
    assert "negative_prompt" not in fingerprint(plain)
    table = open_prepared(plain)
    assert torch.equal(table.unconditional()[0], table._embedding(""))
    with pytest.raises(DataError, match=f"was prepared with model.negative_prompt '', not '{CAPTIONS[1]}'"):
        open_prepared(away)
    write_summary(str(tmp_path), {"finished": True, "fingerprint": fingerprint(away)})
    table = open_prepared(away)
    assert torch.equal(table.unconditional(CAPTIONS[1])[0], table.rows([0]).embeddings[0])
    with pytest.raises(DataError, match=f"was prepared with model.negative_prompt '{CAPTIONS[1]}', not ''"):
        open_prepared(plain)


def test_its_embedding_must_be_there(tmp_path):
    recipe = recipe_for(tmp_path, negative_prompt="dull")
    save_prepared(recipe)
    with pytest.raises(DataError, match="lacks 1 captions of its clips, such as 'dull'"):
        open_prepared(recipe)


def test_a_list_and_the_folder_prepared_from_it_have_one_digest(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4|||red cat\n")
    listed = parse_recipe(recipe_for(tmp_path).model_dump() | {"data": {"manifest": str(tmp_path / "list.txt")}})
    recipe, entries = recipe_for(tmp_path), read_manifest(tmp_path / "list.txt")
    write_summary(str(tmp_path), {"finished": True, "fingerprint": fingerprint(recipe, entries)})
    assert list_digest(recipe) == list_digest(listed) == digest(entries)
    assert digest(entries) != digest([{**entries[0], "caption": "blue dog"}])
