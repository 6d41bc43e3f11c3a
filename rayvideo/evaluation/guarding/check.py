"""What guards need, looked for before anything starts."""

from __future__ import annotations

from rayvideo.data.manifest import read_manifest
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.captions import guarded
from rayvideo.evaluation.metrics import check_measurable
from rayvideo.evaluation.paired import MIN_CAPTIONS
from rayvideo.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Refuse guards that could tell nothing.

    Raises:
        EvaluationError: there are too few captions for an interval, clips are too short or too small to measure, or a
            caption set has no real clips to compare with.
        ManifestError: captions or real clips can't be read.
    """
    options = recipe.evaluation
    if not options.guards:
        return
    check_measurable(recipe.data)
    captions = len({prompt.caption for prompt in guarded(recipe)})
    if captions < MIN_CAPTIONS:
        raise EvaluationError(
            f"evaluation.guards {options.guards}: {captions} captions of all sets together, but intervals and margins "
            f"need {MIN_CAPTIONS}; raise it, or give evaluation.sets more captions"
        )
    manifests = options.features.manifests(options.sets) if options.features else {}
    for name, manifest in manifests.items():
        if manifest is None:
            raise EvaluationError(f"evaluation.features.reference lacks a manifest for the caption set {name!r}")
        read_manifest(manifest)
