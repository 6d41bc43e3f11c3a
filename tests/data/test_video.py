"""Clips through real encoders and back."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rayvideo.data.video import ClipError, read_clip, write_clip
from tests.clips import ball


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    *,
    times_ms: list[int] | None = None,
    fps: int = 8,
    sound: bool = False,
    rotation: int | None = None,
    aspect: Fraction | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write RGB frames [F, H, W, 3] with any encoder; frame i is shown at times_ms[i], by default at i / fps."""
    times_ms = times_ms or [1000 * i // fps for i in range(len(frames))]
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = cast(VideoStream, container.add_stream(codec, rate=fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if sound:
            add_silence(container)
        for pixels, time in zip(frames, times_ms, strict=True):
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def add_silence(container: OutputContainer) -> None:
    stream = container.add_stream("aac", rate=48000)
    silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
    silence.sample_rate = 48000
    container.mux(stream.encode(silence))
    container.mux(stream.encode())


def grey(levels: list[int], size: int = 32) -> np.ndarray:
    """One uniformly grey frame for each level, so that a frame can be told by its mean."""
    return np.broadcast_to(np.array(levels, dtype=np.uint8)[:, None, None, None], (len(levels), size, size, 3)).copy()


def levels(clip: np.ndarray) -> list[int]:
    return [round(float(frame.mean())) for frame in clip]


def test_what_is_written_is_what_is_read(tmp_path):
    clip = ball(1)
    write_clip(tmp_path / "new" / "clip.mp4", clip)
    back = read_clip(tmp_path / "new" / "clip.mp4", 16, 8, 64, 64)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - clip).mean() < 4
    # Colours of flat areas survive: the colour matrix and range are the same both ways.
    assert np.abs(back[8, 30:34, 30:34].astype(int) - clip[8, 30:34, 30:34]).max() < 8
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["clip.mp4"]
    with av.open(str(tmp_path / "new" / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", Fraction(8))


def test_odd_sizes_can_not_be_written(tmp_path):
    with pytest.raises(ValueError, match="even height and width, got 63 x 64"):
        write_clip(tmp_path / "clip.mp4", ball(1, height=63))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("codec", "name"), [("libx264", "a.mkv"), ("libvpx-vp9", "a.webm"), ("libsvtav1", "a.mp4"), ("mpeg4", "a.avi")]
)
def test_codecs_and_containers(tmp_path, codec, name):
    clip = ball(2, height=96, width=128)
    back = read_clip(write(tmp_path / name, clip, codec), 16, 8, 96, 128)
    assert np.abs(back.astype(int) - clip).mean() < 8


def test_sound_and_odd_metadata_are_ignored(tmp_path):
    path = write(tmp_path / "a.mp4", ball(2), sound=True, metadata={"title": "Zürich"})
    content = path.read_bytes()
    path.write_bytes(content.replace("Zürich".encode(), "Zürich".encode().replace(b"\xc3\xbc", b"\xff\xfe")))
    assert read_clip(path, 16, 8, 64, 64).shape == (16, 64, 64, 3)


def test_a_uri(tmp_path):
    path = write(tmp_path / "a.mp4", ball(2))
    np.testing.assert_array_equal(read_clip(f"file://{path}", 16, 8, 64, 64), read_clip(path, 16, 8, 64, 64))


def test_sampling_goes_by_time(tmp_path):
    shades = list(range(20, 220, 4))
    path = write(tmp_path / "a.mp4", grey(shades), fps=25)  # 50 frames, 2 s
    np.testing.assert_allclose(levels(read_clip(path, 16, 8, 32, 32)), [shades[25 * j // 8] for j in range(16)], atol=2)
    np.testing.assert_allclose(levels(read_clip(path, 50, 25, 32, 32)), shades, atol=2)
    np.testing.assert_allclose(levels(read_clip(path, 99, 50, 32, 32)), np.repeat(shades, 2)[:99], atol=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_rates_that_a_millisecond_can_not_hold(tmp_path, name):
    shades = list(range(20, 212, 4))
    path = write(tmp_path / name, grey(shades), fps=24)  # 41.67 ms, stored as 41 or 42
    np.testing.assert_allclose(levels(read_clip(path, 48, 24, 32, 32)), shades, atol=2)


def test_variable_frame_rate(tmp_path):
    path = write(tmp_path / "a.mp4", grey([20, 60, 100, 140, 180]), times_ms=[500, 600, 620, 1400, 2000])
    # Seconds after the first frame: 20 until 0.1, 60 until 0.12, 100 until 0.9, 140 until 1.5, then 180.
    expected = [20, 100, 100, 100, 100, 100, 100, 100, 140, 140, 140, 140, 180]
    np.testing.assert_allclose(levels(read_clip(path, 13, 8, 32, 32)), expected, atol=2)


@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (50, 37), (64, 64)])
def test_any_size_covers_and_is_cropped_at_the_centre(tmp_path, height, width):
    """A red and a blue half keep their border in the middle, and nothing but them is seen."""
    clip = np.zeros((1, height & ~1, width & ~1, 3), dtype=np.uint8)
    clip[:, :, : clip.shape[2] // 2, 0] = 255
    clip[:, :, clip.shape[2] // 2 :, 2] = 255
    back = read_clip(write(tmp_path / "a.mp4", clip), 1, 8, 32, 32)[0].astype(int)
    assert (back[:, :14, 0] > 200).all()
    assert (back[:, 18:, 2] > 200).all()
    assert back[..., 1].max() < 60


def test_the_picture_is_not_distorted(tmp_path):
    y, x = np.mgrid[:64, :128]
    disc = np.where((x - 64) ** 2 + (y - 32) ** 2 < 20**2, 255, 0).astype(np.uint8)
    clip = np.repeat(disc[None, :, :, None], 3, axis=3)
    for path in (
        write(tmp_path / "square.mp4", clip),
        write(tmp_path / "wide.mp4", clip[:, :, ::2], aspect=Fraction(2)),  # pixels twice as wide as high
    ):
        bright = read_clip(path, 1, 8, 32, 32)[0, ..., 0] > 127
        assert abs(bright.any(axis=0).sum() - 20) <= 1
        assert abs(bright.any(axis=1).sum() - 20) <= 1


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_rotation_is_applied(tmp_path, turn):
    clip = np.zeros((1, 32, 64, 3), dtype=np.uint8)
    clip[:, :16, :32] = 255
    back = read_clip(write(tmp_path / "a.mp4", clip, rotation=turn), 1, 8, *((32, 64) if turn == 180 else (64, 32)))
    bright = np.argwhere(back[0, ..., 0] > 127).mean(axis=0) / back.shape[1:3]
    corner = {90: (0.75, 0.25), 180: (0.75, 0.75), -90: (0.25, 0.75)}[turn]  # counterclockwise, from top left
    np.testing.assert_allclose(bright, corner, atol=0.05)


@pytest.mark.parametrize(("frames", "fps"), [(17, 8), (3, 1), (2, 0.5)])
def test_too_short(tmp_path, frames, fps):
    path = write(tmp_path / "a.mp4", ball(1))  # 16 frames, 2 s
    with pytest.raises(ClipError, match=r"a\.mp4: too short: it lasts 2\.00 s"):
        read_clip(path, frames, fps, 64, 64)


def test_the_last_frame_counts_while_it_is_shown(tmp_path):
    path = write(tmp_path / "a.mp4", grey([50, 100]), fps=1)
    assert levels(read_clip(path, 4, 2, 32, 32)) == pytest.approx([50, 50, 100, 100], abs=2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "unreadable: No such file"), (b"", "unreadable: Invalid data"), (b"not a video" * 99, "unreadable")],
)
def test_unreadable(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClipError, match=reason) as error:
        read_clip(path, 16, 8, 64, 64)
    assert pickle.loads(pickle.dumps(error.value)).reason == error.value.reason


def test_sound_alone_is_no_clip(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        add_silence(container)
    with pytest.raises(ClipError, match="no video stream"):
        read_clip(tmp_path / "a.mp4", 16, 8, 64, 64)


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_a_damaged_clip_is_refused(tmp_path, damage):
    path = write(tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8))
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + (b"" if damage == "cut off" else bytes(third) + content[2 * third :]))
    with pytest.raises(ClipError):
        read_clip(path, 16, 8, 64, 64)


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    numbers = np.random.default_rng(0)
    noisy = np.clip(ball(3, 16).astype(int) + numbers.integers(-12, 12, (16, 64, 64, 3)), 0, 255).astype(np.uint8)
    files = set()
    for _ in range(4):
        blocks = [np.full(int(size), 7, np.uint8) for size in numbers.integers(1000, 400_000, 200)]
        del blocks  # leaves other content in the memory that the encoder gets
        write_clip(tmp_path / "clip.mp4", noisy)
        files.add((tmp_path / "clip.mp4").read_bytes())
    assert len(files) == 1
