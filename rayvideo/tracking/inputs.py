"""What a run was made from, as MLflow's datasets: a list of clips, sets of captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from rayvideo.paths import without_login
from rayvideo.storage import absolute, is_uri

DIGITS = 16  # of a digest; MLflow takes up to 36


class Input(NamedTuple):
    """Something that a run read."""

    name: str
    source: str
    """Path or URI."""
    digest: str
    """Of what it holds: the same wherever it lies."""
    context: Literal["training", "evaluation"]
    counts: dict[str, int]
    """How much it is, such as {"clips": 120}."""

    def entity(self) -> DatasetInput:
        """As MLflow keeps it: with the scheme of a URI for the kind of the source, `local` for paths."""
        kind = urlsplit(self.source).scheme if is_uri(self.source) else "local"
        dataset = Dataset(
            name=self.name,
            digest=self.digest[:DIGITS],
            source_type=kind,
            source=json.dumps({"uri": without_login(absolute(self.source))}),
            profile=json.dumps(self.counts),
        )
        return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, self.context)])


def captions_input(name: str, source: str, captions: Sequence[str]) -> Input:
    """A set of captions that clips are compared on."""
    digest = hashlib.sha256(json.dumps([*captions]).encode()).hexdigest()
    return Input(name, source, digest, "evaluation", {"captions": len(captions)})
