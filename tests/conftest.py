"""Fixtures that every part shares: small models of the real classes and real clips, written once per session."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch

from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters, save_adapter
from rayvideo.sections import Lora
from tests import clips, tiny, tiny_cogvideox
from tests.watchdog import Watchdog

# The same examples each time; their number is bounded, so no deadline is needed, which would depend on the machine.
hypothesis.settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Watchdog(config))


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised TextToVideoSDPipeline for 64x64 frames."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("models") / "pipeline")


@pytest.fixture(scope="session")
def tiny_cog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised CogVideoXPipeline, of the 5B's kind, for 9 frames of 32x48 pixels."""
    return tiny_cogvideox.save_pipeline(tmp_path_factory.mktemp("models") / "cogvideox")


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


@pytest.fixture(scope="session")
def adapter(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an adapter for `tiny_pipeline` that changes its clips visibly."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    denoiser = add_lora(load_model(tiny_pipeline, parts=("denoiser",)).denoiser, Lora(), seed=0)
    torch.manual_seed(0)
    for weight in lora_parameters(denoiser).values():
        torch.nn.init.normal_(weight, std=0.3)
    save_adapter(denoiser, folder)
    return folder
