"""The judges, and how they are served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from rayvideo.paths import expand_texts
from rayvideo.sections.base import AutoPrecision, FilePath, Name, Positive, Precision, Section


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
        description="'hpsv2', 'pickscore', 'clip', 'aesthetic', or your own 'module:Class' or 'module:function' "
        "(docs/rewards.md).",
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
        8,
        description="Frames, or clips, per forward pass, always as many: numbers depend on it, in their last bits.",
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
        {}, description="Further keyword arguments of the class's load(), or of the function."
    )


class Rewards(Section):
    """How a video is judged (paper §4.2, Eq. 6-8)."""

    judges: tuple[Judge, ...] = Field(min_length=1, description="Judges that send gradients; their sum is the reward.")
    segments: Positive = Field(
        4, description="Segments S of a clip, at most data.frames; judges of frames see one of each (SegVR)."
    )
    attenuation: float = Field(
        1.0, ge=0, description="Rate lambda of the decay away from the middle frame (TAR), for judges of frames."
    )
    attenuation_unit: Literal["frame", "clip"] = Field(
        "frame",
        description="What attenuation is per: 'frame' as in the paper; 'clip' scales it by 16 / data.frames, so that "
        "longer clips keep the shape that the decay has in the paper's 16 frames.",
    )
    decode: Literal["together", "frame_by_frame"] = Field(
        "together",
        description="together: the decoder's graph of all judged frames waits for the judges. frame_by_frame: one "
        "frame at a time is decoded again for its gradient: less memory, and a second pass of the decoder.",
    )
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
