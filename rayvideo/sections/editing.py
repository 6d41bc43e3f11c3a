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

    rollout_solver: Literal["ddim", "dpmsolver++"] = Field(
        "ddim",
        description="How the steps before the first one with a gradient are made. ddim: as the others, of a flow by "
        "Euler; dpmsolver++: of second order, for fewer steps (rollout_steps; docs/speed.md).",
    )
    rollout_steps: Positive | None = Field(
        None, description="How many steps are made of those before the first one with a gradient; null: all of them."
    )
    guidance_interval: tuple[float, float] | None = Field(
        None,
        description="Noise levels [lowest, highest] in which steps before the first one with a gradient are guided; "
        "elsewhere the caption's prediction alone is half the work. In sigma, the share of noise; null: all.",
    )
    reuse: Positive = Field(
        1,
        description="Gradients from one rollout (objective reward): the first as ever, others from the edited clip "
        "with new noise, each with frames of its own. As many graphs are alive at once.",
    )

    @model_validator(mode="after")
    def _an_interval(self) -> Editing:
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high <= 1:
                raise ValueError(
                    f"editing.guidance_interval {[low, high]}: allowed are two rising numbers from 0 to 1, or null"
                )
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Editing:
        usual = Editing.model_fields["strength"].default
        if self.start_sigma is not None and self.strength != usual:
            raise ValueError(
                f"editing.start_sigma {self.start_sigma} and editing.strength {self.strength} both say where the chain "
                f"starts; set start_sigma to null, or leave strength at {usual}"
            )
        return self
