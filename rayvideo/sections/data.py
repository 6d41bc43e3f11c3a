"""The clips and captions of a run."""

from __future__ import annotations

from pydantic import Field, model_validator

from rayvideo.sections.base import FilePath, Positive, Resources, Section, Share


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
