"""A decoded frame to RGB pixels: upright, in its own colours, at the size that is asked for."""

from __future__ import annotations

from typing import SupportsBytes, cast

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, ColorTrc, Interpolation, VideoReformatter

# Bicubic with full-resolution chroma; swscale widens its filter when it shrinks, which antialiases. Numbers, because
# PyAV names these flags from 18 on, which Python 3.10 can't have.
FULL_CHR_H_INT, ACCURATE_RND = 0x2000, 0x40000
INTERPOLATION = Interpolation.BICUBIC | FULL_CHR_H_INT | ACCURATE_RND
# Most pixels of a resized frame, in units of those that are kept after cropping: to fill the height, a frame of
# 16384 x 2 would become enormous.
MAX_CROPPED = 16
# Entries of a display matrix that are smaller than this share of its scale count as 0. What cos 90° leaves when it is
# written in fixed point is far smaller.
SKEW = 0.01

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
# FFmpeg's numbers of matrices (AVColorSpace), which PyAV doesn't name. swscale takes RGB, BT.709, FCC, BT.470BG,
# SMPTE 170M (these three are BT.601), SMPTE 240M and BT.2020 with constant coefficients.
UNTAGGED = (2, 3)  # unspecified, reserved
MATRICES = (0, 1, 4, 5, 6, 7, 9)
OTHER_MATRICES = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 14: "ICtCp", 15: "IPT"}
HD_LINES = 720  # from so many lines on, frames that don't name their colours are taken for BT.709, as players do


class FrameError(ValueError):
    """Why a frame can't be used, as a reason to drop its clip."""


def fit(
    resize: VideoReformatter, frame: VideoFrame, pixel_aspect: float, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """The frame upright, resized to cover height x width, cropped at the centre: RGB [height, width, 3].

    Args:
        pixel_aspect: Width of a stored pixel divided by its height.

    Raises:
        FrameError: its colours, its orientation or its shape can't be honoured.
    """
    turned, down, across = orientation(frame)
    if turned:
        height, width = width, height
    shown_width = frame.width * pixel_aspect
    scale = max(height / frame.height, width / shown_width)
    tall, wide = max(height, round(frame.height * scale)), max(width, round(shown_width * scale))
    if tall * wide > MAX_CROPPED * height * width:
        shape = f"{frame.width} x {frame.height} pixels, each {pixel_aspect:g} times as wide as high"
        raise FrameError(f"its frames are too long and thin for {width} x {height}: {shape}")
    matrix = colour_matrix(frame)
    # With one thread: clips are decoded side by side, each on a core of its own.
    resized = resize.reformat(frame, wide, tall, "rgb24", matrix, interpolation=INTERPOLATION, threads=1)
    rgb = np.asarray(resized.to_ndarray(), np.uint8)
    top, left = (tall - height) // 2, (wide - width) // 2
    kept = rgb[top : top + height, left : left + width]
    return (kept.swapaxes(0, 1) if turned else kept)[::down, ::across]


def orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """How a frame is to be shown: whether rows and columns change places, then the step (1, -1) through each.

    Raises:
        FrameError: the display matrix does something else than quarter turns and mirroring.
    """
    side = cast("SupportsBytes | None", frame.side_data.get("DISPLAYMATRIX"))  # PyAV's types name another kind only
    if side is None:
        return False, 1, 1
    # A pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y). An unequal scale is in the pixels' aspect.
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5].tolist()
    if max(abs(b), abs(c)) < SKEW * min(abs(a), abs(d)):
        return False, _sign(d), _sign(a)
    # FFmpeg's aspect for an unequal scale holds for frames that aren't turned only.
    if max(abs(a), abs(d), abs(abs(b) - abs(c))) < SKEW * min(abs(b), abs(c)):
        return True, _sign(b), _sign(c)
    shown = " ".join(f"{number / 65536:g}" for number in (a, b, c, d))
    raise FrameError(f"its display matrix ({shown}) is neither a quarter turn nor mirroring; re-encode it upright")


def colour_matrix(frame: VideoFrame) -> int | None:
    """The matrix by which swscale converts the frame to RGB; None: the one that the frame names.

    Whether its values have full or limited range, swscale reads from the frame.

    Raises:
        FrameError: HDR, or colours that swscale can't convert.
    """
    if frame.color_trc in HDR:
        curve = HDR[ColorTrc(frame.color_trc)]
        raise FrameError(f"HDR ({curve}), which is not read; convert it to SDR (docs/clips.md says how)")
    if frame.colorspace in UNTAGGED:
        return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601
    if frame.colorspace not in MATRICES:
        name = OTHER_MATRICES.get(frame.colorspace, f"matrix {frame.colorspace}")
        raise FrameError(f"its colours are stored as {name}, which is not read; convert it to BT.709")
    return None


def _sign(number: int) -> int:
    return 1 if number > 0 else -1
