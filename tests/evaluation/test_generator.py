"""Actors that make clips, called in this process."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvideo.evaluation.captions import Prompt
from rayvideo.evaluation.clipfolder import Row
from rayvideo.evaluation.generate import generate_clips, to_pixels
from rayvideo.evaluation.workers import ClipWorker
from rayvideo.evaluation.writers import ClipWriter
from rayvideo.models import ModelError, load_model
from rayvideo.recipe import Recipe, parse_recipe
from tests import tiny_wan

CAPTIONS = ["a red cat", "the moon at night"]
NEGATIVE = "a dog"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tiny_wan.save_pipeline(tmp_path_factory.mktemp("models") / "a14b", "A14B")
    tree: dict[str, Any] = {
        "model": {"path": str(path), "negative_prompt": NEGATIVE},
        "data": {"prepared": "nowhere", "frames": 5, "height": 32, "width": 32},
        "reward": {"judges": [{"name": "judge", "type": "aesthetic"}], "segments": 1},
        "training": {"precision": "fp32"},
        "evaluation": {"batch_size": 2},
    }
    return parse_recipe(tree)


def test_the_text_tower_is_gone_when_clips_are_made_and_no_number_differs(recipe: Recipe, tmp_path: Path) -> None:
    worker, writer = ClipWorker(recipe, None), ClipWriter(recipe, None, False, str(tmp_path))
    embeddings = worker.embed([NEGATIVE, *CAPTIONS])
    tower = weakref.ref(worker._text._text_encoder.shared.weight)
    with pytest.raises(ModelError, match="'denoiser' part"):
        worker._text.enable_checkpointing()
    prompts = [Prompt("set", caption, seed) for seed, caption in enumerate(CAPTIONS)]
    _, clips = worker.generate(prompts, 2, *embeddings)
    assert tower() is None
    with pytest.raises(ModelError, match="'text' part"):
        worker._model.encode_prompts(CAPTIONS)
    rows = [Row(f"{seed}.mp4", None, caption, seed, 2, None, "", "done") for seed, caption in enumerate(CAPTIONS)]
    assert [row.status for row in writer.write(rows, *embeddings)] == ["done", "done"]
    assert {file.name for file in tmp_path.iterdir()} == {"0.mp4", "1.mp4"}

    whole = load_model(recipe.model.path)
    size: dict[str, Any] = {"frames": 5, "height": 32, "width": 32}
    guidance = recipe.evaluation.guidance
    alone = generate_clips(whole, CAPTIONS, [0, 1], steps=2, guidance=guidance, negative_prompt=NEGATIVE, **size)
    assert (clips["base"].pixels == to_pixels(alone)).all()
    assert not np.array_equal(embeddings[0].values, embeddings[1].values)
