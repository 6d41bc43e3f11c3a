"""Fixtures that every part shares: small models of the real classes and real clips, written once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import clips, tiny


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised TextToVideoSDPipeline for 64x64 frames."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("models") / "pipeline")


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with judge.pt, open_clip_config.json and a tokenizer; takes 32x32 frames."""
    return tiny.save_judge(tmp_path_factory.mktemp("models") / "judge")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised CLIPModel for 32x32 frames, with tokenizer and preprocessing."""
    return tiny.save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with six H.264 clips (64x64 pixels, 16 frames at 8 fps), four distinct captions; `list.txt` names them."""
    return clips.save_clips(tmp_path_factory.mktemp("clips"))
