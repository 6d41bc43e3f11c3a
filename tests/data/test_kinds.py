"""Files that look like clips and are none: the reason says what they are. And every container that is one."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from rayvideo.data.containers import CONTAINERS
from rayvideo.data.video import ClipError, read_clip
from tests.clips import ball


def refusal(path: Path, frames: int = 4) -> str:
    with pytest.raises(ClipError) as error:
        read_clip(path, frames, 8, 64, 64)
    return error.value.reason


def images(count: int) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in ball(1, count)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("png", "a picture (png), not a clip"),
        ("jpeg", "a picture (jpeg), not a clip"),
        ("webp", "a picture (webp), not a clip"),
        ("bmp", "a picture (bmp), not a clip"),
        ("tiff", "a picture (tiff), not a clip"),
        ("avif", "a picture (avif), not a clip"),
        ("gif", "a still picture, not a clip: it holds a single frame"),
    ],
)
@pytest.mark.parametrize("ending", ["own", "mp4"])
def test_pictures(tmp_path, kind, reason, ending):
    path = tmp_path / f"a.{kind if ending == 'own' else ending}"
    images(1)[0].save(path, format=kind)
    assert refusal(path) == reason


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("webp", "WebP")])
@pytest.mark.parametrize("ending", ["own", "gif"])
def test_animations_that_are_not_read(tmp_path, kind, name, ending):
    path = tmp_path / f"a.{kind if ending == 'own' else ending}"
    first, *others = images(16)
    first.save(path, format=kind, save_all=True, append_images=others, duration=125)
    assert refusal(path) == f"an animated {name}, which is not read; convert it to mp4"


def test_an_animated_gif_is_a_clip_and_a_slow_still_one_is_none(tmp_path):
    first, *others = images(16)
    first.save(tmp_path / "moves.gif", save_all=True, append_images=others, duration=120)
    assert np.abs(read_clip(tmp_path / "moves.gif", 8, 4, 64, 64)[4].astype(int) - ball(1)[8]).mean() < 12
    first.save(tmp_path / "still.gif", duration=60_000)
    assert refusal(tmp_path / "still.gif").startswith("a still picture")
    assert read_clip(tmp_path / "still.gif", 1, 8, 64, 64).shape == (1, 64, 64, 3)  # where a picture is what is wanted


def sound(path: Path, codec: str, *, cover: bool, name: str | None = None) -> Path:
    """A second of silence; with a cover it is as music players have it."""
    with av.open(str(path), "w", format=name) as container:
        audio = cast(AudioStream, container.add_stream(codec, rate=48000))
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            for packet in [*picture.encode(VideoFrame.from_image(images(1)[0])), *picture.encode()]:
                container.mux(packet)
        layout = {"libmp3lame": "s16p", "flac": "s16"}.get(codec, "fltp")
        dtype = np.float32 if layout == "fltp" else np.int16
        samples = np.zeros((2, 1152) if layout.endswith("p") else (1, 2304), dtype)
        for number in range(40):
            frame = av.AudioFrame.from_ndarray(samples, format=layout, layout="stereo")
            frame.sample_rate, frame.pts = 48000, number * 1152
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "cover", "reason"),
    [
        ("a.mp3", "libmp3lame", True, "audio with a cover picture (mp3), no video stream"),
        ("a.mp3", "libmp3lame", False, "audio (mp3), no video stream"),
        ("a.flac", "flac", False, "audio (flac), no video stream"),
        ("a.m4a", "aac", True, "audio with a cover picture, no video stream"),
        ("a.mp4", "aac", False, "audio, no video stream"),
        ("a.mkv", "aac", False, "audio, no video stream"),
    ],
)
def test_audio(tmp_path, name, codec, cover, reason):
    path = sound(tmp_path / name, codec, cover=cover, name="mp4" if name == "a.m4a" else None)
    assert refusal(path) == reason
    assert refusal(path.rename(tmp_path / "b.mp4")) == reason


def test_a_cover_is_not_taken_for_the_clip(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        stream = container.add_stream("libx264", rate=8)
        for each in (cover, stream):
            each.width, each.height = 64, 64
        cover.pix_fmt, stream.pix_fmt, cover.disposition = "yuvj420p", "yuv420p", Disposition.attached_pic
        container.mux([*cover.encode(VideoFrame.from_ndarray(np.full((64, 64, 3), 255, np.uint8))), *cover.encode()])
        for pixels in ball(1):
            container.mux(stream.encode(VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    assert np.abs(read_clip(tmp_path / "a.mp4", 16, 8, 64, 64).astype(int) - ball(1)).mean() < 8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><title>404</title>" * 9, "a web page (html)"),
        (b"PK\3\4" + bytes(99), "a zip archive; unpack it"),
        (b"YUV4MPEG2 W2 H2 F8:1\nFRAME\n" + bytes(6), "unreadable: none of the containers that are read"),
    ],
)
def test_other_files_with_a_clips_name(tmp_path, content, reason):
    (tmp_path / "a.mp4").write_bytes(content)
    assert refusal(tmp_path / "a.mp4").startswith(reason)


# What this FFmpeg can write into each container; the muxer where the ending alone does not name it.
ENCODERS = {"gif": "gif", "mpeg": "mpeg2video", "asf": "wmv2", "mxf": "mpeg2video", "ogg": "libvpx", "flv": "flv"}
MUXERS = {
    ".qt": "mov", ".mj2": "mov", ".mk3d": "matroska", ".divx": "avi", ".mpe": "mpeg", ".m2p": "vob", ".mts": "mpegts",
    ".m2ts": "mpegts", ".m2t": "mpegts", ".wmv": "asf", ".asf": "asf", ".ogv": "ogg", ".ogm": "ogg",
}  # fmt: skip


@pytest.mark.parametrize(
    ("container", "ending"), [(name, ending) for name, endings in CONTAINERS.items() for ending in endings]
)
def test_every_ending_that_is_listed_is_read(tmp_path, container, ending):
    path = tmp_path / f"a{ending.upper()}"
    codec = {".webm": "libvpx-vp9", ".3gp": "mpeg4", ".3g2": "mpeg4"}.get(ending) or ENCODERS.get(container, "libx264")
    options = {"mpegts_m2ts_mode": "1"} if ending in (".mts", ".m2ts") else {}
    clip = ball(3, frames=25, height=144, width=176)
    with av.open(str(path), "w", format=MUXERS.get(ending), container_options=options) as output:
        stream = cast(VideoStream, output.add_stream(codec, rate=25))
        stream.width, stream.height = 176, 144
        stream.pix_fmt = {"gif": "bgr8", "mxf": "yuv422p"}.get(container, "yuv420p")
        stream.bit_rate = 4_000_000
        for pixels in clip:
            output.mux(stream.encode(VideoFrame.from_ndarray(pixels).reformat(format=stream.pix_fmt)))
        output.mux(stream.encode())
    back = read_clip(path, 4, 5, 144, 176).astype(int)
    assert np.abs(back - clip[[25 * j // 5 for j in range(4)]]).mean() < (30 if container == "gif" else 12)
