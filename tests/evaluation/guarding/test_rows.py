"""A row is read as it was written, down to the last bit."""

from __future__ import annotations

import json

from rayvideo.evaluation.guarding.rows import Figure, Row


def test_a_row_survives_its_line() -> None:
    figures = {"held_out": Figure("held-out", 0.1, 0.2, 1 / 3, None, None, 0.25), "kid": Figure("measure", *[0.5] * 6)}
    row = Row(20, 100, figures, {"in domain": figures, "new/odd": {}}, seconds=1.25)
    assert Row.of(json.loads(json.dumps(row.to_json()))) == row
