"""The collector rests while large libraries are imported, and goes on as it was."""

from __future__ import annotations

import gc

import pytest

from rayvideo.importing import quickly


def test_the_collector_rests_and_goes_on() -> None:
    assert gc.isenabled()
    with quickly():
        assert not gc.isenabled()
        with quickly():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), quickly():
        import rayvideo.no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_the_user_stopped_stays_so() -> None:
    gc.disable()
    try:
        with quickly():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
