"""Orientation and colours: files with the tags that cameras and editors write, read back as players show them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from rayvideo.data.video import ClipError, read_clip

ONE = 1 << 16  # 1 as a display matrix has it
RED, GREEN, BLUE, GREY = (224, 32, 16), (30, 200, 60), (20, 40, 220), (90, 90, 90)
# Kr and Kb, the shares of red and blue in luma, by FFmpeg's number of the matrix (ITU-R BT.601, BT.709, BT.2020).
SHARES = {5: (0.299, 0.114), 6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
UNTAGGED, BT709, BT601, BT2020, FULL = 2, 1, 6, 9, 2


def quarters(height: int = 32, width: int = 48) -> np.ndarray:
    """One frame [1, height, width, 3] whose four quarters differ: red and green above, blue and grey below."""
    picture = np.empty((1, height, width, 3), np.uint8)
    picture[:, : height // 2, : width // 2], picture[:, : height // 2, width // 2 :] = RED, GREEN
    picture[:, height // 2 :, : width // 2], picture[:, height // 2 :, width // 2 :] = BLUE, GREY
    return picture


def save(path: Path, frames: list[VideoFrame], codec: str = "libx264", **tags) -> Path:
    """Encode frames as they are; `tags` are the encoder's attributes, but for `matrix`, the stream's display matrix."""
    with av.open(str(path), "w") as container:
        options = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}}
        stream = cast(VideoStream, container.add_stream(codec, rate=8, options=options.get(codec, {})))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        if matrix := tags.pop("matrix", None):
            stream.set_display_matrix([*matrix[:2], 0, *matrix[2:], 0, 0, 0, 1 << 30])
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pictures(pixels: np.ndarray) -> list[VideoFrame]:
    return [VideoFrame.from_ndarray(each, format="rgb24").reformat(format="yuv444p") for each in pixels]


def patch(
    rgb: tuple[int, int, int], matrix: int, *, full: bool = False, height: int = 64, width: int = 64
) -> VideoFrame:
    """One flat yuv444p frame, by the standards' formulas."""
    kr, kb = SHARES[matrix]
    red, green, blue = (value / 255 for value in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = np.array([(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
    levels = [255 * luma, *(128 + 255 * chroma)] if full else [16 + 219 * luma, *(128 + 224 * chroma)]
    planes = np.empty((3, height, width), np.uint8)
    planes[:] = np.round(levels)[:, None, None]
    frame = VideoFrame.from_ndarray(planes, format="yuv444p")
    frame.colorspace, frame.color_range = matrix, FULL if full else 1
    return frame


def assert_shows(path: Path, rgb: tuple[int, int, int], height: int = 64, width: int = 64) -> None:
    clip = read_clip(path, 1, 8, height, width)
    assert clip.reshape(-1, 3).std(axis=0).max() < 1
    np.testing.assert_allclose(clip.reshape(-1, 3).mean(axis=0), rgb, atol=3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((ONE, 0, 0, ONE), lambda picture: picture),
        ((-ONE, 0, 0, ONE), np.fliplr),
        ((ONE, 0, 0, -ONE), np.flipud),
        ((-ONE, 0, 0, -ONE), lambda picture: np.rot90(picture, 2)),
        ((0, ONE, -ONE, 0), lambda picture: np.rot90(picture, -1)),  # clockwise: how phones are held
        ((0, -ONE, ONE, 0), np.rot90),
        ((0, ONE, ONE, 0), lambda picture: picture.swapaxes(0, 1)),
        ((0, -ONE, -ONE, 0), lambda picture: np.rot90(picture, 2).swapaxes(0, 1)),
        ((2 * ONE, 3, -3, 2 * ONE), lambda picture: picture),  # a scale says nothing, rounding neither
    ],
)
def test_all_eight_orientations(tmp_path, name, matrix, shown):
    expected = shown(quarters()[0])
    clip = read_clip(save(tmp_path / name, pictures(quarters()), matrix=matrix), 1, 8, *expected.shape[:2])
    assert np.abs(clip[0].astype(int) - expected).mean() < 8


@pytest.mark.parametrize(
    "matrix", [(ONE // 2, ONE // 2, -ONE // 2, ONE // 2), (ONE, ONE // 2, 0, ONE), (0, ONE, -2 * ONE, 0), (0, 0, 0, 0)]
)
def test_other_display_matrices_are_dropped_with_the_reason(tmp_path, matrix):
    with pytest.raises(ClipError, match=r"its display matrix \(.*\) is neither a quarter turn nor mirroring"):
        read_clip(save(tmp_path / "a.mp4", pictures(quarters()), matrix=matrix), 1, 8, 32, 48)


def test_pixels_that_are_not_square_in_a_clip_that_is_turned(tmp_path):
    """Stored 32 x 48 with pixels twice as wide as high is 32 x 96 lying, and 96 x 32 upright."""
    path = save(tmp_path / "a.mp4", pictures(quarters()), matrix=(0, ONE, -ONE, 0), sample_aspect_ratio=Fraction(2))
    expected = np.rot90(quarters(32, 96)[0], -1)
    assert np.abs(read_clip(path, 1, 8, 96, 32)[0].astype(int) - expected).mean() < 8


@pytest.mark.parametrize("rgb", [RED, GREEN, BLUE, GREY])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [BT709, BT601, 5, BT2020])
def test_the_matrix_and_range_that_a_file_names(tmp_path, rgb, full, matrix):
    tags = {"colorspace": matrix, "color_range": FULL if full else 1}
    assert_shows(save(tmp_path / "a.mp4", [patch(rgb, matrix, full=full)], **tags), rgb)


@pytest.mark.parametrize(("height", "matrix"), [(720, BT709), (1080, BT709), (718, BT601), (64, BT601)])
def test_untagged_frames_are_bt709_from_720_lines_on(tmp_path, height, matrix):
    frame = patch(RED, matrix, height=height, width=96)
    frame.colorspace = UNTAGGED
    path = save(tmp_path / "a.mkv", [frame])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == UNTAGGED
    assert_shows(path, RED, height, 96)


@pytest.mark.parametrize(("codec", "name", "pixels"), [("libx264rgb", "a.mp4", "rgb24"), ("gif", "a.gif", "bgr8")])
def test_frames_that_are_rgb_have_no_matrix(tmp_path, codec, name, pixels):
    pure = np.broadcast_to(np.array([255, 0, 0], np.uint8), (720, 96, 3))
    frame = VideoFrame.from_ndarray(pure, format="rgb24").reformat(format=pixels)
    assert_shows(save(tmp_path / name, [frame], codec), (255, 0, 0), 720, 96)


@pytest.mark.parametrize(("curve", "word"), [(ColorTrc.SMPTE2084, "PQ"), (ColorTrc.ARIB_STD_B67, "HLG")])
@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mov"), ("libx265", "a.mp4"), ("libsvtav1", "a.mkv")])
def test_hdr_is_refused_by_name(tmp_path, curve, word, codec, name):
    frame = patch(RED, BT2020).reformat(format="yuv420p10le" if codec != "libx264" else "yuv444p")
    tags = {"colorspace": BT2020, "color_primaries": 9, "color_trc": int(curve)}
    with pytest.raises(ClipError, match=rf"HDR \({word}\), which is not read; convert it to SDR"):
        read_clip(save(tmp_path / name, [frame], codec, **tags), 1, 8, 64, 64)


def test_ten_bits_alone_are_no_hdr(tmp_path):
    frame = patch(RED, BT2020).reformat(format="yuv420p10le")
    tags = {"colorspace": BT2020, "color_primaries": 9, "color_trc": int(ColorTrc.BT2020_10)}
    assert_shows(save(tmp_path / "a.mp4", [frame], "libx265", **tags), RED)


def test_matrices_that_can_not_be_converted_are_named(tmp_path):
    with pytest.raises(ClipError, match="its colours are stored as YCgCo, which is not read"):
        read_clip(save(tmp_path / "a.mkv", [patch(RED, BT709)], colorspace=8), 1, 8, 64, 64)
