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
    """Six clean clips with different captions, and two frames of each."""
    scenes = {caption: scene for scene, caption in training_scenes(10, seed=0)}
    captions = list(scenes)[:6]
    clips = torch.stack([torch.from_numpy(draw(scenes[caption])) for caption in captions])
    clips = clips.permute(0, 1, 4, 2, 3).float()
    return Samples(clips[:, [4, 12]], captions, "drawn", clips, 8.0)


def judge_of(name: str = "judge", kind: str = "hpsv2", **changes: object) -> Judge:
    """The menagerie's judge `judge` or `held_out`, loaded by the class `kind`."""
    files = {"checkpoint": f"{WEIGHTS}/{name}/judge.pt", "architecture": f"{WEIGHTS}/{name}/open_clip_config.json"}
    return Judge.model_validate({"name": name, "type": kind, **files, **changes})
