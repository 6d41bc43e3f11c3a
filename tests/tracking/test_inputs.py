"""What MLflow's table shows of a run's inputs and of the program that made it."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rayvideo.recipe import Recipe
from rayvideo.tracking import Input, Tracker, TrackingError, captions_input, create_run, open_experiment
from rayvideo.tracking.origin import overrides
from tests.tracking.test_run import recipe

CLIPS = Input("list", "/data/list.txt", "a" * 64, "training", {"clips": 120, "rejected": 2})


def run_with(storage: Path, *inputs: Input) -> Run:
    ref = create_run(recipe(storage), storage / "inputs")
    Tracker(ref).inputs(*inputs)
    Tracker(ref).inputs(*inputs)  # a run that is resumed, or evaluated again
    return MlflowClient(ref.uri).get_run(ref.run_id)


def test_a_run_names_its_clips_and_captions_once(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4|||a cat\n")
    captions = captions_input("new", "captions/new.txt", ["a cat", "a dog"])
    run = run_with(storage, CLIPS._replace(source=str(tmp_path / "list.txt")), captions)
    clips, shown = sorted(run.inputs.dataset_inputs, key=lambda each: each.dataset.name)
    assert (clips.dataset.name, clips.dataset.digest) == ("list", "a" * 16)
    assert [(tag.key, tag.value) for tag in clips.tags] == [("mlflow.data.context", "training")]
    assert json.loads(clips.dataset.profile) == {"clips": 120, "rejected": 2}
    assert mlflow.data.get_source(clips).load() == str(tmp_path / "list.txt")
    assert shown.tags[0].value == "evaluation"
    assert json.loads(shown.dataset.source) == {"uri": str(Path("captions/new.txt").absolute())}


def test_runs_are_found_by_the_clips_that_they_were_trained_on(storage: Path) -> None:
    run = run_with(storage, CLIPS._replace(name="other", digest="b" * 64, source="s3://bucket/clips?region=eu"))
    client = MlflowClient(open_experiment(recipe(storage))[0])
    found = client.search_runs([run.info.experiment_id], f"dataset.digest = '{'b' * 16}'")
    assert [each.info.run_id for each in found] == [run.info.run_id]
    assert found[0].inputs.dataset_inputs[0].dataset.source_type == "s3"


def test_the_same_captions_have_the_same_digest_wherever_they_lie() -> None:
    one, other = (captions_input("in", place, ["a cat", "a dog"]) for place in ("here.txt", "there.txt"))
    assert one.digest == other.digest
    assert one.digest != captions_input("in", "here.txt", ["a cat", "two dogs"]).digest


def test_a_run_names_its_program_and_what_was_typed(storage: Path) -> None:
    ours = recipe(storage)
    typed = ["training.lr=1e-4", "tracking.uri=http://me:secret@server:1"]
    ref = create_run(ours, storage / "typed", typed)
    client = MlflowClient(ref.uri)
    tags = client.get_run(ref.run_id).data.tags
    assert tags["mlflow.source.name"] == sys.argv[0]
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["overrides"] == "training.lr=1e-4 tracking.uri=http://server:1"
    assert overrides(()) == {}
    for words in ("tags.overrides LIKE '%training.lr=%'", "params.`training.lr` = '1e-05' AND tags.overrides != ''"):
        assert ref.run_id in [run.info.run_id for run in client.search_runs([ref.experiment_id], words)], words


def child(storage: Path, parent: str, experiment: str) -> Recipe:
    return recipe(storage, parent=parent, experiment=experiment)


def test_a_child_stands_below_its_parent(storage: Path) -> None:
    parent = create_run(recipe(storage), storage / "sweep")
    ref = create_run(recipe(storage, parent=parent.run_id), storage / "trial")
    client = MlflowClient(ref.uri)
    found = client.search_runs([ref.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert [run.info.run_id for run in found] == [ref.run_id]
    for wrong in (child(storage, "nosuchrun", "rayvideo"), child(storage, parent.run_id, "another")):
        with pytest.raises(TrackingError, match=r"has no run '.*'; name one of it in tracking\.parent"):
            open_experiment(wrong)
