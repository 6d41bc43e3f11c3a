"""What becomes of "auto" in a recipe."""

import logging
from typing import Any

import pytest

from rayvideo.errors import RecipeError
from rayvideo.precision import CPU, computes
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.settling import settle

AUTO = "bf16" if computes("bf16", CPU) else "fp32"


def recipe(precision: str = "auto", **judge: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "model"},
            "data": {"manifest": "list.txt"},
            "reward": {"judges": [{"name": "judge", **judge}]},
            "training": {"precision": precision},
            "evaluation": {"judges": [{"name": "other", "dtype": "auto"}]},
        }
    )


def test_every_auto_is_replaced_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        settled = settle(recipe(dtype="auto"), "training")
    assert settled.training.precision == AUTO
    assert [judge.dtype for judge in (*settled.reward.judges, *settled.evaluation.judges)] == [AUTO, AUTO]
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in told] == [
        "training.precision auto",
        "reward.judges.0.dtype auto",
        "evaluation.judges.0.dtype auto",
    ]
    assert all(f": {AUTO} on " in line for line in told)
    assert settle(settled, "training") == settled


def test_what_is_written_out_stays(caplog: pytest.LogCaptureFixture) -> None:
    assert settle(recipe("fp32", dtype="fp32"), "evaluation").training.precision == "fp32"
    assert settle(recipe("fp32"), "evaluation").reward.judges[0].dtype == "fp32"


@pytest.mark.skipif(computes("bf16", CPU), reason="this CPU computes bf16")
def test_an_emulated_format_is_warned_of_with_its_slowdown(caplog: pytest.LogCaptureFixture) -> None:
    assert settle(recipe("bf16"), "training").training.precision == "bf16"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "training.precision bf16: " in warning
    assert "only emulates it, in " in warning


@pytest.mark.skipif(computes("fp16", CPU), reason="this CPU computes fp16")
def test_training_in_an_emulated_fp16_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RecipeError, match=r"training\.precision 'fp16': .* only emulates it"):
        settle(recipe("fp16"), "training")
    assert settle(recipe("fp16"), "evaluation").training.precision == "fp16"
