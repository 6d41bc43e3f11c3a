"""What the figures of a step are judged by."""

from __future__ import annotations

import pytest
import torch

from rayvideo.doctor.microbatch import adapter_gradient, memory, saturation

NAME = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def gradients(**changes: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """Those of a fresh adapter on two layers, by short names such as `to_q_B`."""
    names = {f"to_q_{m}": f"{NAME}.to_q.lora_{m}.default.weight" for m in "AB"}
    names |= {f"to_out_{m}": f"{NAME}.to_out.0.lora_{m}.default.weight" for m in "AB"}
    fresh = {short: torch.zeros(2, 2) if short[-1] == "A" else torch.full((2, 2), 3.0) for short in names}
    return {names[short]: gradient for short, gradient in (fresh | changes).items()}


def test_a_fresh_adapter_learns_through_b_alone():
    finding = adapter_gradient(gradients())
    assert finding.ok
    assert finding.measured == "B: to_q 6, to_out.0 6; A: exactly 0 in 2 matrices, as it must be while B = 0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"to_q_B": None}, f"none, NaN or Inf in 1 of 4 matrices, as {NAME}.to_q.lora_B"),
        (
            {"to_out_A": torch.full((2, 2), torch.nan)},
            f"none, NaN or Inf in 1 of 4 matrices, as {NAME}.to_out.0.lora_A",
        ),
        ({"to_q_B": torch.zeros(2, 2)}, f"exactly 0 in 1 B matrices, as {NAME}.to_q.lora_B"),
    ],
)
def test_matrices_that_learn_nothing_are_named(change, words):
    finding = adapter_gradient(gradients(**change))
    assert finding.ok is False
    assert words in finding.measured


def test_pixels_and_memory_have_limits():
    assert saturation(0.02, "hard").ok
    assert not saturation(0.3, "hard").ok
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayvideo.doctor.microbatch._room", lambda device: (10 * 2**30, "this machine has"))
        small, large = (memory(2**30, peak * 2**30, torch.device("cpu"), "one step") for peak in (2, 12))
    assert small.ok
    assert small.measured == "one step: 2.00 GiB at the peak, 1.00 of them for the step; this machine has 10 GiB"
    assert large.ok is False
    assert "training.batch_size" in large.mend
