"""What base and tuned model are compared on, and where figures go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from rayvideo.sections.base import FilePath, Name, Positive, Resources, Section
from rayvideo.sections.reward import Judge


class Features(Section):
    """A frozen feature extractor and the real clips it compares with (KID)."""

    type: str = Field(description="'module:Class' with .load(checkpoint) and .features(frames) -> [N, D].")
    checkpoint: FilePath | None = Field(None, description="Its weights.")
    reference: FilePath | dict[str, FilePath] = Field(
        description="Manifest of the clips that generated ones are compared with, or caption set -> manifest: clips "
        "of other subjects are far away however good they are."
    )

    def manifests(self, sets: Iterable[str]) -> dict[str, str | None]:
        """Caption set -> the manifest of its real clips, None where `reference` leaves it out."""
        reference = self.reference
        return {name: reference if isinstance(reference, str) else reference.get(name) for name in sets}


class Evaluation(Section):
    """What base and tuned model are compared on: same captions, same seeds."""

    sets: dict[Annotated[str, Field(max_length=100)], FilePath] = Field(
        {}, description="Name of a caption set -> file with captions."
    )
    max_captions: Positive | None = Field(None, description="Captions taken from each set (default: all).")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Clips per caption: one for each seed.")
    steps: tuple[Positive, ...] = Field(
        (20,),
        min_length=1,
        description="Steps D of a whole chain: a number, or several such as [20, 50].",
    )
    guidance: float = Field(3.0, ge=1, description="Classifier-free guidance scale.")
    batch_size: Positive = Field(8, description="Clips per forward pass.")
    workers: Positive = Field(1, description="Actors that generate clips.")
    cpus_per_worker: float = Field(1.0, ge=0, description="CPUs per generating actor.")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs per generating actor.")
    resources: Resources = Field({}, description="Custom resources per generating actor.")
    judges: tuple[Judge, ...] = Field((), description="Held-out judges: they only report, nothing is trained on them.")
    allow_training_judges: bool = Field(
        False,
        description="Accept weights of reward.judges among them too, e.g. for the official score of the training "
        "judge. It is then no guard: a rising score may only mean that the model pleases it.",
    )
    features: Features | None = Field(None, description="Feature distance to reference clips (KID).")
    every: int = Field(0, ge=0, description="Training steps between comparisons in MLflow; 0: only first and last.")
    previews: int = Field(
        4, ge=0, description="Captions shown in each of those comparisons and in the report, per set; 0 shows none."
    )
    judge_previews: bool = Field(
        False,
        description="Held-out judges score the clips of those comparisons too, so that their figures are known while "
        "training goes on (a sweep needs it); they hold their resources meanwhile.",
    )

    guards: int = Field(
        0,
        ge=0,
        description="Captions of each set, with all seeds, by which actors beside the training tell every `every` "
        "steps what it costs: held-out judges, motion, flicker, diversity, KID, against the base (docs/guards.md). "
        "0: none. All sets together need 6.",
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _one_or_several(cls, steps: Any) -> Any:
        return tuple(steps) if isinstance(steps, list) else (steps,)

    @model_validator(mode="after")
    def _guards_have_a_rhythm(self) -> Evaluation:
        if self.guards and not self.every:
            raise ValueError("evaluation.guards needs evaluation.every, the training steps between two looks")
        return self

    @field_validator("steps")
    @classmethod
    def _each_once(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(steps))

    @model_validator(mode="after")
    def _there_are_previews_to_judge(self) -> Evaluation:
        if self.judge_previews and not (self.judges and self.sets and self.previews):
            raise ValueError(
                "evaluation.judge_previews: there is nothing to judge; it needs evaluation.judges, evaluation.sets and "
                "evaluation.previews above 0"
            )
        return self


class Tracking(Section):
    """MLflow."""

    uri: str | None = Field(
        None, description="Server or database; default MLFLOW_TRACKING_URI, else sqlite in storage."
    )
    experiment: str = Field("rayvideo", description="Experiment that the run is filed under.")
    run_name: Name | None = Field(None, description="Name of run and run folder (default: date and time).")
    parent: str | None = Field(
        None, description="Id of the run of the same experiment that this one is a child of, such as a sweep's."
    )
    system_metrics: bool = Field(
        True, description="Log what the first worker's machine is busy with; GPUs need the package nvidia-ml-py."
    )
    register_as: Name | None = Field(
        None, description="Name in MLflow's model registry that the tuned model becomes a version of."
    )
