"""Drawn clips and the judges that come with the package."""

from __future__ import annotations

import pytest
import torch

from rayvideo.doctor.samples import Samples
from rayvideo.menagerie.build import WEIGHTS
from rayvideo.menagerie.clips import training_scenes
from rayvideo.menagerie.world import draw
from rayvideo.sections import Judge


@pytest.fixture(scope="session")
def samples() -> Samples:
    """Two frames of each of six clean clips with different captions."""
    scenes = {caption: scene for scene, caption in training_scenes(10, seed=0)}
    captions = list(scenes)[:6]
    frames = torch.stack([torch.from_numpy(draw(scenes[caption])[[4, 12]]) for caption in captions])
    return Samples(frames.permute(0, 1, 4, 2, 3).float(), captions, "drawn")


def judge_of(name: str = "judge", kind: str = "hpsv2", **changes: object) -> Judge:
    """The menagerie's judge `judge` or `held_out`, loaded by the class `kind`."""
    files = {"checkpoint": f"{WEIGHTS}/{name}/judge.pt", "architecture": f"{WEIGHTS}/{name}/open_clip_config.json"}
    return Judge.model_validate({"name": name, "type": kind, **files, **changes})
