"""Optimisation: workers, batches, steps, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from rayvideo.errors import RecipeError
from rayvideo.paths import expand_texts
from rayvideo.sections.base import AutoPrecision, Beta, Positive, Resources, Section


class Workers(Section):
    """How many DeepSpeed workers train: a number, or bounds between which they follow the nodes of the cluster."""

    min: Positive = Field(1, description="Workers that training waits for.")
    max: Positive = Field(description="Most workers; the global batch is that of so many.")
    check_every_s: float = Field(60.0, gt=0, description="Seconds between looks at the nodes, for workers to follow.")

    @model_validator(mode="before")
    @classmethod
    def _number_or_bounds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError(f"training.workers: {value} is not allowed: at least 1")
            return {"min": value, "max": value}
        if not isinstance(value, (dict, Workers)):
            raise ValueError(f"training.workers: {value!r} is not allowed: a number, or {{min: 1, max: 4}}")
        return value

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"training.workers.min {self.min} is more than training.workers.max {self.max}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, bounds: SerializerFunctionWrapHandler) -> Any:
        return bounds(self) if self.elastic else self.max

    def __str__(self) -> str:
        return f"{self.min}-{self.max}" if self.elastic else str(self.max)

    @property
    def elastic(self) -> bool:
        """Whether the number may change during a run."""
        return self.min < self.max


class Zero3(Section):
    """How ZeRO-3 brings the workers' shares of weights together; neither option changes a number that is trained."""

    prefetch: int = Field(
        50_000_000,
        ge=0,
        description="Weights, in numbers, that are fetched ahead of the layer that needs them. About a block of the "
        "model hides the fetching behind the block before; they take memory. 0: none.",
    )
    live: Positive = Field(
        1_000_000_000, description="Weights, in numbers, that a worker holds whole at once, at most; less costs time."
    )


class Training(Section):
    """Optimisation (release: AdamW on the adapter, batch 8 over 4 GPUs, 20 000 steps)."""

    objective: str = Field(
        "reward",
        description="reward: InstructVideo; draft, rwr, ddpo: the paper's baselines, which generate from pure noise "
        "and use only the captions of data (but see rwr.samples). rwr and ddpo also take judges without gradient. Or "
        "your own 'module:Class' (docs/objectives.md).",
    )
    objective_options: dict[str, Any] = Field({}, description="Options of an objective of your own.")
    samples_per_caption: Positive = Field(
        1,
        description="Objectives rwr and ddpo: samples of each caption in a step, whose rewards are compared among "
        "themselves only. 1 compares all samples of a step, whatever their captions.",
    )
    steps: Positive = Field(
        20_000, description="Optimizer steps; for rwr and ddpo rounds of sampling and the section's `updates`."
    )
    workers: Workers = Field(
        Workers(min=1, max=1),
        description="DeepSpeed workers: a number, or {min, max} to follow the nodes of the cluster (docs/elastic.md).",
    )
    batch_size: Positive = Field(2, description="Clips per worker and micro-batch.")
    accumulation: Positive = Field(
        1, description="Micro-batches per worker and optimizer step; fewer workers than the most take more."
    )
    lr: float = Field(1e-5, gt=0, description="AdamW's learning rate after warm-up.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    warmup_steps: int = Field(10, ge=0, description="Steps of linear warm-up.")
    max_grad_norm: float = Field(0.0, ge=0, description="Gradient norm is clipped to this; 0 clips nothing.")
    precision: AutoPrecision = Field(
        "auto",
        description="Precision of the denoiser, in generation too; LoRA masters are fp32. auto: bf16 on GPUs and "
        "CPUs that compute it, else fp32; the run's recipe.yaml says which, and a resumed run keeps it.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="DeepSpeed ZeRO stage. 3 shares the denoiser's weights out among the workers as it is loaded, so "
        "that none holds it whole on its device (docs/models.md).",
    )
    offload: Literal["none", "cpu"] = Field(
        "none",
        description="With zero_stage 3: cpu keeps each worker's share of the weights in the memory of its machine, "
        "and on the device only what is computed with right now. Slower; workers on CPUs gain nothing by it.",
    )
    zero3: Zero3 = Zero3()
    checkpoint_every: Positive = Field(500, description="Steps between checkpoints.")
    keep_checkpoints: Positive = Field(3, description="Newest checkpoints that are kept.")
    keep_best: Literal["reward"] | None = Field(
        None,
        description="'reward' also keeps the checkpoint with the highest mean training reward of the steps since the "
        "one before it, which is what a run that only pleases its judge maximises too (docs/checkpointing.md).",
    )
    stop_rule: str | None = Field(
        None,
        description="A class of yours, 'module:Class', that may end the run before its last step and choose the step "
        "whose adapter is the product (docs/checkpointing.md). Null: the run does all of its steps.",
    )
    stop_options: Annotated[dict[str, Any], AfterValidator(expand_texts)] = Field(
        {}, description="Keyword arguments of that class."
    )
    max_failures: int = Field(2, ge=0, description="Worker failures after which the run gives up.")
    cpus_per_worker: float = Field(1.0, ge=0, description="CPUs that a worker reserves.")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs that a worker reserves (0 trains on CPU).")
    resources: Resources = Field({}, description="Custom resources that a worker reserves, e.g. {trainer: 1}.")

    @field_validator("keep_best", mode="before")
    @classmethod
    def _best_by_what(cls, value: Any) -> Any:
        # What runs of earlier versions were begun with, and can be resumed with.
        earlier: dict[object, str | None] = {True: "reward", "true": "reward", False: None, "false": None}
        return earlier.get(value, value) if isinstance(value, bool | str) else value

    @model_validator(mode="after")
    def _fp16_is_scaled(self) -> Training:
        if self.precision == "fp16" and self.zero_stage == 0:
            raise ValueError(
                "training.precision 'fp16' with training.zero_stage 0: DeepSpeed scales the loss, without which small "
                "gradients vanish, only in stages 1, 2 and 3"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_offloaded(self) -> Training:
        if self.offload != "none" and self.zero_stage != 3:
            raise ValueError(
                f"training.offload {self.offload!r} with training.zero_stage {self.zero_stage}: only stage 3 has "
                "shares of weights to keep elsewhere; set training.zero_stage to 3, or training.offload to 'none'"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_fetched(self) -> Training:
        if self.zero3 != Zero3() and self.zero_stage != 3:
            raise ValueError(
                f"training.zero3 with training.zero_stage {self.zero_stage}: only stage 3 fetches weights; set "
                "training.zero_stage to 3, or leave training.zero3 out"
            )
        return self

    @property
    def global_batch(self) -> int:
        """Clips of all workers in an optimizer step: the same however many workers share them."""
        return self.workers.max * self.batch_size * self.accumulation

    @property
    def sizes(self) -> list[int]:
        """The numbers of workers that can share the global batch evenly."""
        return _sharing(self.global_batch // self.batch_size)

    def accumulation_of(self, workers: int) -> int:
        """Micro-batches of each of so many workers in an optimizer step.

        Raises:
            RecipeError: they can't share the global batch evenly.
        """
        return _share(self.global_batch, self.batch_size, workers)

    def with_global_batch(self, clips: int) -> Training:
        """The same with such an `accumulation` that an optimizer step has so many clips, as a resumed run's must.

        Raises:
            RecipeError: `workers.max` can't share them evenly.
        """
        return self.model_copy(update={"accumulation": _share(clips, self.batch_size, self.workers.max)})

    @model_validator(mode="after")
    def _samples_share_captions_evenly(self) -> Training:
        if self.global_batch % self.samples_per_caption:
            raise ValueError(
                f"training.samples_per_caption {self.samples_per_caption} does not divide the {self.global_batch} "
                "samples of a step (training.workers x batch_size x accumulation)"
            )
        return self


def _sharing(micro_batches: int) -> list[int]:
    return [workers for workers in range(1, micro_batches + 1) if micro_batches % workers == 0]


def _share(clips: int, size: int, workers: int) -> int:
    allowed = _sharing(clips // size)
    if workers not in allowed:
        raise RecipeError(
            f"training.workers: {workers} can't share the {clips} clips of an optimizer step evenly in micro-batches "
            f"of {size}; allowed for this run: {', '.join(map(str, allowed))}"
        )
    return clips // size // workers
