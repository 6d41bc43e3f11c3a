"""The sections of a recipe: every option, documented where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rayvideo.errors import RecipeError
from rayvideo.paths import expand, expand_texts

Precision = Literal["fp32", "bf16", "fp16"]
AutoPrecision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto: bf16 where the device that runs it computes bf16, else fp32; `settle` says which before anything starts."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
"""What may become part of a file's name or of a metric's."""
FilePath = Annotated[str, AfterValidator(expand)]
"""A path, a URI or a hub id; a leading `~` is a home folder."""
Positive = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def _are_custom(resources: dict[str, float]) -> dict[str, float]:
    if own := {"CPU", "GPU", "memory", "object_store_memory"} & resources.keys():
        raise PydanticCustomError("resources", f"{', '.join(sorted(own))} is not a custom resource")
    if not all(0 < amount < float("inf") for amount in resources.values()):
        raise PydanticCustomError("resources", "amounts must be above 0")
    return resources


# Ray's custom resources: on a cluster with node groups they say which group something runs on (docs/clusters.md).
Resources = Annotated[dict[str, float], AfterValidator(_are_custom)]


class Section(BaseModel):
    """A frozen part of the recipe; keys that it does not list are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(Section):
    """The trainable adapter (paper §4; the release trains rank 4 on every attention)."""

    rank: Positive = Field(4, description="Rank r of each pair of matrices.")
    alpha: float = Field(4.0, gt=0, description="Scale numerator: the adapter's output is multiplied by alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="Name endings of the layers that get a pair."
    )


class Model(Section):
    """The text-to-video model that is tuned."""

    path: FilePath = Field(description="Folder or hub id in diffusers' TextToVideoSDPipeline format.")
    lora: Lora = Lora()
    checkpointing: Literal["none", "step", "blocks", "both"] = Field(
        "blocks",
        description="What is recomputed in the backward pass: whole DDIM steps, the denoiser's blocks, both, nothing.",
    )


class Data(Section):
    """The clips and captions that are edited during training."""

    manifest: FilePath | None = Field(
        None, description="List of clips: reference list, csv, jsonl, Parquet, or a folder."
    )
    root: FilePath | None = Field(
        None, description="Folder that relative clip paths start from (default: the manifest's)."
    )
    prepared: FilePath | None = Field(
        None, description="Folder that jobs/prepare.py wrote; used in place of the manifest."
    )
    frames: int = Field(16, gt=0, le=4096, description="Frames per clip, F.")
    fps: float = Field(8.0, gt=0, description="Frames per second that clips are sampled at.")
    height: int = Field(256, gt=0, le=8192, description="Pixels; clips are resized to cover and centre-cropped.")
    width: int = Field(256, gt=0, le=8192, description="Pixels.")
    max_bad_fraction: Share = Field(0.05, description="Share of dropped clips above which the run stops.")
    decode_cpus: float = Field(1.0, gt=0, description="CPUs that one video decoding task reserves.")
    encoders: Positive = Field(1, description="Actors that run the VAE encoder and the text tower.")
    encoder_cpus: float = Field(1.0, ge=0, description="CPUs per encoder.")
    encoder_gpus: float = Field(0.0, ge=0, description="GPUs per encoder.")
    decode_resources: Resources = Field({}, description="Custom resources of a task that decodes clips or writes them.")
    encoder_resources: Resources = Field({}, description="Custom resources per encoder.")
    batch_size: Positive = Field(4, description="Clips per encoder call.")

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.manifest is None) == (self.prepared is None):
            raise ValueError("set exactly one of data.manifest and data.prepared")
        return self


class Editing(Section):
    """Reward fine-tuning as editing: corrupt a clip, denoise it part of the way (paper §4.1, Eq. 3-5)."""

    strength: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Noise level tau: share of the chain that is run. Objectives other than reward run all of it.",
    )
    steps: Positive = Field(20, description="DDIM steps D of a whole chain.")
    grad_steps: Positive = Field(1, description="Last steps K that carry a gradient (objectives reward and draft).")
    guidance: float = Field(3.0, ge=1, description="Classifier-free guidance scale.")
    offset_noise: float = Field(0.1, ge=0, description="Strength of the noise shared by all pixels of a frame.")


class Replicas(Section):
    """How many copies of a judge answer requests."""

    min: Positive = Field(1, description="Copies that are always there.")
    max: Positive = Field(1, description="Copies that a long queue may call for.")
    idle_s: float = Field(60.0, gt=0, description="Seconds without work after which one above the minimum ends.")

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.max < self.min:
            raise ValueError(f"replicas.max {self.max} is below replicas.min {self.min}; raise max")
        return self


class Judge(Section):
    """A frozen reward model, served by actors of its own."""

    name: Name = Field(description="Name in logs, tables and errors.")
    type: str = Field(
        "hpsv2",
        description="'hpsv2', 'pickscore', 'clip', 'aesthetic', or your own 'module:Class' (docs/rewards.md).",
    )
    checkpoint: FilePath | None = Field(
        None, description="The judge's weights: a file, or a folder or hub id where docs/rewards.md says so."
    )
    architecture: FilePath | None = Field(
        None, description="open_clip model name, or path of an open_clip config file."
    )
    weight: float = Field(1.0, description="Factor in the sum of all judges.")
    resize: Literal["bilinear", "bicubic"] = Field(
        "bilinear",
        description="bilinear: the release's, without antialias; bicubic: the judge's official one, antialiased.",
    )
    dtype: AutoPrecision = Field(
        "fp32",
        description="Precision of the judge's weights; gradients return as fp32. auto: as training.precision says.",
    )
    micro_batch: Positive = Field(
        8, description="Frames per forward pass, always as many: numbers depend on it, in their last bits."
    )
    replicas: Replicas = Replicas()
    num_cpus: float = Field(0.0, ge=0, description="CPUs that each copy reserves, and threads that it runs on.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that each copy reserves; fractions share one.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Ray's custom resources that each copy reserves, such as {judge: 1} for nodes that offer it."
    )
    runtime_env: dict[str, Any] | None = Field(
        None, description="Ray's runtime_env of its own, for packages that clash with others (docs/serving.md)."
    )
    timeout_s: float = Field(300.0, gt=0, description="Seconds after which a request counts as failed.")
    load_timeout_s: float = Field(
        600.0, gt=0, description="Seconds within which a copy must be loaded, the start of a node for it included."
    )
    options: Annotated[dict[str, Any], AfterValidator(expand_texts)] = Field(
        {}, description="Further keyword arguments of the class's load()."
    )


class Rewards(Section):
    """How a video is judged (paper §4.2, Eq. 6-8)."""

    judges: tuple[Judge, ...] = Field(min_length=1, description="Judges that send gradients; their sum is the reward.")
    segments: Positive = Field(4, description="Segments S; one frame of each is judged (SegVR).")
    attenuation: float = Field(1.0, ge=0, description="Rate lambda of the decay away from the middle frame (TAR).")
    clamp: Literal["straight_through", "hard"] = Field(
        "straight_through", description="How pixels are clamped to [0, 1]; 'hard' (the release's) kills their gradient."
    )
    wire: Precision = Field(
        "fp32",
        description="Precision of frames on their way to the judges; gradients return as fp32, or else as bf16.",
    )
    merge_ms: float = Field(
        2.0,
        ge=0,
        description="Milliseconds that a request which fills no micro-batch waits for another one's frames; 0: none.",
    )
    shared: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name under which runs on the same cluster share the judges (default: each run has its own).",
    )


class Draft(Section):
    """Objective draft: the judge's gradient through the last steps of generating from pure noise (DRaFT)."""

    noisings: int = Field(
        0,
        ge=0,
        description="0: DRaFT-K, K = editing.grad_steps. n > 0: DRaFT-LV, the mean gradient of n last steps, each from "
        "the finished sample with new noise; n graphs are alive at once.",
    )


class Rwr(Section):
    """Objective rwr: regression to samples, weighted by exp(reward / temperature)."""

    samples: Literal["generated", "data"] = Field(
        "generated",
        description="What is judged and learned: generated: what the model makes of the captions now. data: the clips "
        "of data, where their quality varies; nothing is generated then, so that a step is much cheaper.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="In standard deviations of the global batch's rewards; lower trusts the best samples more.",
    )
    updates: Positive = Field(4, description="Optimizer updates on the same samples, each at noise levels of its own.")


class Ddpo(Section):
    """Objective ddpo: policy gradient on the chain from pure noise, with clipped importance ratios (DDPO-IS)."""

    eta: float = Field(1.0, gt=0, le=1, description="Randomness of the DDIM steps that samples are drawn with.")
    learned_steps: Positive | None = Field(
        None,
        description="Steps of the chain that are learned, those of most noise first; null: all. Steps of little noise "
        "make the gradient noisy and hardly change the reward (docs/objectives.md).",
    )
    clip_range: float = Field(1e-4, gt=0, description="A step's importance ratio is clipped to 1 ± this.")
    max_advantage: float = Field(5.0, gt=0, description="Advantages, in standard deviations, are clipped to ± this.")
    updates: Positive = Field(
        2, description="Optimizer updates on the same samples; the ratio differs from 1 after one."
    )


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


class Training(Section):
    """Optimisation (release: AdamW on the adapter, batch 8 over 4 GPUs, 20 000 steps)."""

    objective: Literal["reward", "draft", "rwr", "ddpo"] = Field(
        "reward",
        description="reward: InstructVideo; draft, rwr, ddpo: the paper's baselines, which generate from pure noise "
        "and use only the captions of data (but see rwr.samples). rwr and ddpo also take judges without gradient.",
    )
    draft: Draft = Draft()
    rwr: Rwr = Rwr()
    ddpo: Ddpo = Ddpo()
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
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage.")
    checkpoint_every: Positive = Field(500, description="Steps between checkpoints.")
    keep_checkpoints: Positive = Field(3, description="Newest checkpoints that are kept.")
    keep_best: Literal["reward"] | None = Field(
        None,
        description="'reward' also keeps the checkpoint with the highest mean training reward of the steps since the "
        "one before it, which is what a run that only pleases its judge maximises too (docs/checkpointing.md).",
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
    def _samples_can_be_compared(self) -> Training:
        if self.objective in ("rwr", "ddpo") and self.global_batch < 2:
            raise ValueError(
                f"training.objective {self.objective!r} compares the samples of a step, but there is only one; raise "
                "training.batch_size, training.accumulation or training.workers"
            )
        if self.global_batch % self.samples_per_caption:
            raise ValueError(
                f"training.samples_per_caption {self.samples_per_caption} does not divide the {self.global_batch} "
                "samples of a step (training.workers x batch_size x accumulation)"
            )
        if self.objective == "rwr" and self.rwr.samples == "data" and self.samples_per_caption > 1:
            raise ValueError(
                "training.samples_per_caption: with training.rwr.samples 'data' a step would have the same clip "
                f"{self.samples_per_caption} times; set it to 1"
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
        description="DDIM steps D of a whole chain: a number, or several such as [20, 50].",
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
    previews: Positive = Field(4, description="Captions shown in each of those comparisons and in the report, per set.")

    @field_validator("steps", mode="before")
    @classmethod
    def _one_or_several(cls, steps: Any) -> Any:
        return tuple(steps) if isinstance(steps, list) else (steps,)

    @field_validator("steps")
    @classmethod
    def _each_once(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(steps))


class Tracking(Section):
    """MLflow."""

    uri: str | None = Field(
        None, description="Server or database; default MLFLOW_TRACKING_URI, else sqlite in storage."
    )
    experiment: str = Field("rayvideo", description="Experiment that the run is filed under.")
    run_name: Name | None = Field(None, description="Name of run and run folder (default: date and time).")
