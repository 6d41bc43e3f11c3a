"""What all sections of a recipe share: frozen, strict, and the kinds of values that options take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from rayvideo.paths import expand

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
