"""Reading and writing clips with PyAV."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from rayvideo.data.storage import StorageError, is_uri, locate, write_bytes
from rayvideo.errors import UserError

# Containers round times to their tick, at worst a millisecond (Matroska); a frame may be this early or late.
TICK_S = 0.001
# Bicubic with full-resolution chroma; swscale widens its filter when it shrinks, which antialiases. Numbers, because
# PyAV names these flags from 18 on, which Python 3.10 can't have.
FULL_CHR_H_INT, ACCURATE_RND = 0x2000, 0x40000
# What clips come in. FFmpeg guesses by content, and would also take playlists, which name other files and hosts.
CONTAINERS = "mov,matroska,avi,gif,mpeg,mpegts,flv,asf,ogg,mxf"
MAX_PIXELS = 2**25  # of a frame, more than 8K has; a damaged header may claim any size
MAX_CROPPED = 16  # times the pixels that are kept: a frame of 16384 x 2 would be blown up to fill the height
INTERPOLATION = Interpolation.BICUBIC | FULL_CHR_H_INT | ACCURATE_RND


class ClipError(UserError):
    """A clip that must not be used; `reason` says why, the message names the file too."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # the arguments, so that the error survives pickling between processes
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.reason}"


def read_clip(path: str | Path, frames: int, fps: float, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The first `frames` frames of a clip as a player at `fps` would show them.

    Frame j is the one on screen j / fps seconds after the clip's first frame, whatever the clip's own rate, constant or
    not. It is turned as the file says, resized to cover height x width, and cropped at the centre. Sound is ignored.

    Args:
        path: A local file or a URI, in any container and codec that FFmpeg reads (H.264, VP9, AV1, ...).

    Returns:
        RGB pixels [frames, height, width, 3], 0..255.

    Raises:
        ClipError: The file is missing, unreadable, damaged, has no video or is shorter than (frames - 1) / fps.
    """
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    filled, seconds = 0, 0.0
    resize = VideoReformatter()
    try:
        with _open(str(path)) as container:
            if not container.streams.video:
                raise ClipError(path, "no video stream")
            if container.streams.video[0].codec_context is None:
                raise ClipError(path, "no decoder for its video stream")
            pixel_aspect = float(container.streams.video[0].sample_aspect_ratio or 1)
            for frame, seconds in _shown(path, container):
                due = min(frames, math.ceil((seconds - TICK_S) * fps))
                if due > filled:
                    clip[filled:due] = _fit(path, resize, frame, pixel_aspect, height, width)
                    filled = due
                if filled == frames:
                    return clip
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, f"unreadable: {error.strerror or error}") from error
    except StorageError as error:
        raise ClipError(path, str(error)) from error
    needed = f"{frames} frames at {fps:g} fps need more than {(frames - 1) / fps:.2f} s"
    raise ClipError(path, f"too short: it lasts {seconds:.2f} s, but {needed}")


def write_clip(path: str | Path, frames: npt.NDArray[np.uint8], fps: float = 8, crf: int = 17) -> None:
    """Write RGB pixels [F, H, W, 3], 0..255, as H.264 yuv420p mp4 (the reference's output), atomically.

    The same pixels give the same bytes.

    Raises:
        ValueError: H or W is odd, which yuv420p can't hold.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs an even height and width, got {height} x {width}")
    # No B-frames: on frames of 64 pixels x264's search for them depends on what memory held before.
    options = {"crf": str(crf), "x264-params": "bframes=0"}
    video = io.BytesIO()
    with av.open(video, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    write_bytes(path, video.getvalue())


def _open(path: str) -> InputContainer:
    """Odd metadata is no reason to refuse a clip, hence errors="replace"."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).type not in (pa.fs.FileType.File, pa.fs.FileType.NotFound):
        raise ClipError(path, "no regular file")  # a pipe could be waited for without end
    # `inner` is absolute: FFmpeg would take a name such as "concat:a|b" as one of its own protocols.
    source = filesystem.open_input_file(inner) if is_uri(path) else inner
    return av.open(source, metadata_errors="replace", container_options={"format_whitelist": CONTAINERS})


def _shown(path: str | Path, container: InputContainer) -> Iterator[tuple[VideoFrame, float]]:
    """Frames with the time at which each leaves the screen, in seconds after the first frame."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # clips are decoded side by side, one core each
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    shown: VideoFrame | None = None
    start = 0.0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ClipError(path, "damaged: a frame can't be decoded")
        if frame.time is None:
            raise ClipError(path, "its frames carry no times; remux it, e.g. into mp4")
        if shown is None:
            start = frame.time
        else:
            yield shown, frame.time - start
        shown = frame
    if shown is not None:
        held = float(shown.duration * shown.time_base) if shown.duration and shown.time_base else 0.0
        yield shown, shown.time - start + max(held, 2 * TICK_S)


def _fit(
    path: str | Path, resize: VideoReformatter, frame: VideoFrame, pixel_aspect: float, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """The frame upright, resized to cover height x width, cropped at the centre: RGB [height, width, 3]."""
    turns = round(frame.rotation / 90) % 4
    if turns % 2:
        height, width = width, height
    shown_width = frame.width * pixel_aspect
    scale = max(height / frame.height, width / shown_width)
    tall, wide = max(height, round(frame.height * scale)), max(width, round(shown_width * scale))
    if tall * wide > MAX_CROPPED * height * width:
        shape = f"{frame.width} x {frame.height} pixels, each {pixel_aspect:g} times as wide as high"
        raise ClipError(path, f"its frames are too long and thin for {width} x {height}: {shape}")
    rgb = resize.reformat(frame, wide, tall, "rgb24", interpolation=INTERPOLATION).to_ndarray()
    top, left = (tall - height) // 2, (wide - width) // 2
    return np.rot90(rgb[top : top + height, left : left + width], turns)
