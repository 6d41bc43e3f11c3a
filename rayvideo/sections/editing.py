"""How clips are noised and denoised."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayvideo.sections.base import Positive, Section


class Editing(Section):
    """Reward fine-tuning as editing: corrupt a clip, denoise it part of the way (paper §4.1, Eq. 3-5)."""

    strength: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Noise level tau: share of the chain that is run. Objectives other than reward run all of it.",
    )
    start_sigma: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Flow models only, in place of strength: the chain starts at its first step whose noise sigma is "
        "this or less. The paper's strength is 0.658 (docs/flow.md).",
    )
    steps: Positive = Field(20, description="Steps D of a whole chain: DDIM's, or Euler's of a flow.")
    grad_steps: Positive = Field(1, description="Last steps K that carry a gradient (objectives reward and draft).")
    grad_on: Literal["last", "random"] | tuple[int, ...] = Field(
        "last",
        description="Which steps carry it. last: the last grad_steps; random: as many, drawn anew for each optimizer "
        "step. Or a list of the steps that are run, counted from 1, or from the end: [-1] is the last.",
    )
    detach_input: bool = Field(
        False,
        description="Stop the gradient where latents enter the denoiser (DRTune's stop-gradient): it then passes "
        "through the steps themselves alone.",
    )
    guidance: float = Field(3.0, ge=1, description="Classifier-free guidance scale.")
    offset_noise: float | None = Field(
        None,
        ge=0,
        description="Strength of the noise shared by all pixels of a frame; null: 0.1 for diffusion, 0 for flows.",
    )

    @model_validator(mode="after")
    def _one_start(self) -> Editing:
        usual = Editing.model_fields["strength"].default
        if self.start_sigma is not None and self.strength != usual:
            raise ValueError(
                f"editing.start_sigma {self.start_sigma} and editing.strength {self.strength} both say where the chain "
                f"starts; set start_sigma to null, or leave strength at {usual}"
            )
        return self
