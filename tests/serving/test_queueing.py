"""Which requests may share a forward pass."""

from __future__ import annotations

from typing import Any, cast

from rayvideo.sections import Precision
from rayvideo.serving.queueing import Queued
from rayvideo.serving.wire import Times


def request(
    shape: tuple[int, ...], times: Times | None = None, gradient: bool = True, wire: Precision = "fp32"
) -> Queued:
    return Queued(None, shape, ["a"] * shape[0], gradient, wire, times, cast(Any, None))


def test_clips_share_a_pass_if_they_have_the_same_times():
    clips = request((2, 4, 3, 16, 12), (0.0, 0.5, 1.0, 1.5))
    assert request((5, 4, 3, 16, 12), (0.0, 0.5, 1.0, 1.5)).kind == clips.kind
    for other in (
        request((2, 4, 3, 16, 12), (0.0, 0.25, 0.5, 0.75)),
        request((2, 4, 3, 16, 16), (0.0, 0.5, 1.0, 1.5)),
        request((2, 4, 3, 16, 12), (0.0, 0.5, 1.0, 1.5), gradient=False),
        request((2, 4, 3, 16, 12), (0.0, 0.5, 1.0, 1.5), wire="bf16"),
        request((2, 3, 16, 12)),
    ):
        assert other.kind != clips.kind


def test_messages_say_frames_or_clips():
    assert request((2, 4, 3, 16, 12), (0.0, 0.5, 1.0, 1.5)).described == "2 clips of 4x3x16x12 with gradient"
    assert request((2, 3, 16, 12), gradient=False).described == "2 frames of 3x16x12"
