"""Tiny models of every kind of Wan, written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from diffusers import WanPipeline

from tests import tiny_wan

Folder = Callable[[tiny_wan.Kind], Path]
Pipeline = Callable[[tiny_wan.Kind], WanPipeline]


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folder of a pipeline of a kind; no test may change it."""

    @cache
    def folder(kind: tiny_wan.Kind) -> Path:
        return tiny_wan.save_pipeline(tmp_path_factory.mktemp("wan") / kind, kind)

    return folder


@pytest.fixture(scope="session")
def theirs(wan: Folder) -> Pipeline:
    """diffusers' pipeline from that folder."""

    @cache
    def pipeline(kind: tiny_wan.Kind) -> WanPipeline:
        loaded: WanPipeline = WanPipeline.from_pretrained(wan(kind))
        loaded.set_progress_bar_config(disable=True)
        return loaded

    return pipeline
