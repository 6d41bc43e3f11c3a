"""Options of judges that can't be."""

from __future__ import annotations

import pytest

from rayvideo.errors import RecipeError
from rayvideo.recipe import parse_recipe


def parse(**judge) -> None:
    parse_recipe(
        {
            "model": {"path": "model"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "hps", **judge}]},
        }
    )


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"replicas": {"min": 2}}, "replicas.max 1 is below replicas.min 2; raise max"),
        ({"micro_batch": 0}, "reward.judges.0.micro_batch: 0 is not allowed"),
        ({"resources": {"judge": 0}}, "reward.judges.0.resources.judge: 0 is not allowed"),
    ],
)
def test_options_that_cannot_be_are_refused(judge: dict, message: str):
    parse(replicas={"min": 2, "max": 2}, micro_batch=16, resources={"judge": 0.5})
    with pytest.raises(RecipeError, match=message):
        parse(**judge)
