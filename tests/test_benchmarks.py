"""What a benchmark measures is what it says; how long it takes is nobody's business here."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.wan_step import measure


def test_a_step_of_wan_at_reduced_width() -> None:
    found = measure(
        Namespace(
            device="cpu",
            layers=1,
            vae_dim=8,
            frames=9,
            height=32,
            width=32,
            steps=10,
            context=0,
            repeat=1,
        )
    )
    assert found["calls of the denoiser"] == 3  # of 10 steps with shift 3, those from σ = 0.658 on
    seconds = found["seconds"]
    assert isinstance(seconds, dict)
    assert set(seconds) == {"step", "rollout", "decode", "backward"}
