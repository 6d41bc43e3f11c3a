"""Steps of each objective, and generated clips, come out as before objectives and schedules had rooms of their own.

The figures were written down from the code of 7b32d7f, on an AMD EPYC with AVX2. Where a forward pass gives the bits
that it gave there, adapters and clips are equal to the last bit; other machines round differently, by less than below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rayvideo.data.table import LatentTable, Place
from rayvideo.data.tasks import FORMAT, tensor_array
from rayvideo.evaluation.generate import generate_clips
from rayvideo.models import load_model
from rayvideo.recipe import parse_recipe
from rayvideo.serving.local import LocalPool
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine

pytestmark = pytest.mark.usefixtures("process_group")

CAPTIONS = ["red cat", "blue dog", "snail"]
FORWARD_PASS = "a2b99d2c24d05069d7527f3cc73892a1429152d397a7e68bc956e3d1c395c789"


class Before(NamedTuple):
    """What three steps came to."""

    training: dict[str, Any]
    rewards: list[float]
    losses: list[float]
    norms: list[float]
    adapter: str
    """SHA-256 of its tensors, by name."""


BEFORE = {
    "reward": Before(
        {},
        [0.1283457726, 0.1262970492, 0.0790077858],
        [0.8716542125, 0.8737029731, 0.9209921956],
        [1.9338971470e-05, 1.1890660062e-05, 8.5818128355e-06],
        "f4c671b6e6532585602a6b3bc0e3fb8bf17ea721a96dceeb6b0c4d0f9024f72d",
    ),
    "draft": Before(
        {"objective": "draft"},
        [0.1082981192, 0.1163399220, 0.1246809401],
        [0.8917019069, 0.8836600780, 0.8753190637],
        [2.9146242468e-06, 3.1475678952e-06, 3.4918411984e-06],
        "ca30476691cd34d56cebbb20f32f8a3778ab2c6f86de2f30401ed0a2cd177d37",
    ),
    "draft-LV": Before(
        {"objective": "draft", "draft": {"noisings": 2}},
        [0.1053124517, 0.1265501305, 0.1185158566],
        [0.8946875632, 0.8734498620, 0.8814841807],
        [2.9162722512e-06, 3.4711069929e-06, 3.2144610032e-06],
        "2823efab3e57bfce168d41bf0d0a7f15f25a31c3263385f53f5cc579b9ab2404",
    ),
    "rwr": Before(
        {"objective": "rwr", "rwr": {"updates": 2}},
        [0.0666092634, 0.0670345463, 0.1485682949],
        [1.0740228593, 1.0863673091, 1.0712262392],
        [0.0280378722, 0.0290806200, 0.0382333817],
        "e49030c0f8355cd58a2a97d3a802f1b468da5945049ad543cd57933350fffa3b",
    ),
    "ddpo": Before(
        {"objective": "ddpo"},
        [0.0667103752, 0.0673628338, 0.1497291178],
        [-2.7948617935e-05, -2.0481646061e-05, -2.1712481976e-05],
        [0.0076247425, 0.0092109495, 0.0100140838],
        "e481dfbc63fe24d3d4af87a00ddd5614814c1e2d75a0d010fc5142b378faf039",
    ),
}
CLIPS = "440a736c4f718aae9ccb885c4070c413e858c0630422342fb69f6f43c03a4dca"
"""Three clips of the adapter that `reward` made."""
BRIGHTNESS = [0.4860788286, 0.4882020056, 0.4887180328]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LatentTable:
    """Posteriors and embeddings of three made-up clips."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    clips = {
        "id": pa.array(range(3)),
        "video": pa.array(CAPTIONS),
        "caption": pa.array(CAPTIONS),
        "mean": tensor_array(5 * rng.standard_normal((3, 4, 4, 8, 8), dtype=np.float32)),
        "logvar": tensor_array(rng.standard_normal((3, 4, 4, 8, 8), dtype=np.float32) - 4),
    }
    texts = ["", *CAPTIONS]
    spoken = {"caption": pa.array(texts), "embedding": tensor_array(rng.standard_normal((4, 48, 32), dtype=np.float32))}
    for name, columns in (("clips", clips), ("captions", spoken)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=1, **FORMAT)
    return LatentTable(
        [Place(f"{folder}/clips.parquet", row) for row in range(3)],
        {caption: Place(f"{folder}/captions.parquet", row) for row, caption in enumerate(texts)},
        [],
    )


@pytest.fixture(scope="module")
def same_bits(tiny_pipeline: Path) -> bool:
    """Whether this machine computes a forward pass as the one did where the figures come from."""
    model = load_model(tiny_pipeline, parts=("denoiser",))
    latents = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return digest({"": model.predict(latents, torch.tensor(500), torch.ones(2, 48, 32)).detach()}) == FORWARD_PASS


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in the order of their names."""
    return hashlib.sha256(
        b"".join(tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors))
    ).hexdigest()


@pytest.mark.parametrize("name", BEFORE)
def test_runs_come_out_as_before(tiny_pipeline, table, same_bits, name):
    before = BEFORE[name]
    options = {"precision": "fp32", "batch_size": 2, "accumulation": 2, "warmup_steps": 0, "lr": 1e-3}
    judge = {"name": "bright", "type": "tests.cluster.judges:Brightness"}
    recipe = parse_recipe(
        {
            "model": {"path": str(tiny_pipeline), "checkpointing": "none"},
            "data": {"manifest": "unused", "frames": 4, "height": 64, "width": 64},
            "editing": {"steps": 5},
            "reward": {"judges": [judge], "segments": 2},
            "training": options | before.training,
        }
    )
    model, adapted, _, engine, trainer = assemble(
        recipe,
        table,
        LocalPool(recipe.reward.judges),
        torch.device("cpu"),
        lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
    )
    steps = [trainer.step(step) for step in (1, 2, 3)]
    adapter = digest(engine.adapter())
    engine.close()
    assert [values["reward"] for values in steps] == pytest.approx(before.rewards, rel=1e-3)
    assert [values["loss"] for values in steps] == pytest.approx(before.losses, rel=1e-3, abs=1e-5)
    assert [values["gradient_norm"] for values in steps] == pytest.approx(before.norms, rel=0.02)
    if same_bits:
        assert adapter == before.adapter
    if name == "reward":
        model.denoiser = adapted
        rows = table.rows([0, 1, 2])
        embeddings = {"": table.unconditional()[0], **dict(zip(CAPTIONS, rows.embeddings, strict=True))}
        clips = generate_clips(
            model,
            CAPTIONS,
            [0, 1, 2],
            steps=3,
            guidance=3.0,
            frames=4,
            height=64,
            width=64,
            embeddings=embeddings,
        )
        assert clips.mean((1, 2, 3, 4)).tolist() == pytest.approx(BRIGHTNESS, rel=1e-3)
        if same_bits:
            assert digest({"": clips}) == CLIPS
