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
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from rayvideo.data.containers import WHITELIST
from rayvideo.data.frames import FrameError, fit
from rayvideo.data.kinds import HEAD_BYTES, kind
from rayvideo.errors import UserError
from rayvideo.storage import StorageError, is_uri, locate, write_bytes

# Containers round times to their ticks, Matroska to a millisecond: a frame may be shown this much early or late.
TICK_S = 0.001
MAX_PIXELS = 2**25  # of a frame: more than 8K has. A damaged header may name any size, which would be allocated.


class ClipError(UserError):
    """A clip that must not be used; `reason` says why, the message names the file too."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # all arguments, or the error could not be pickled between processes
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.reason}"


def read_clip(path: str | Path, frames: int, fps: float, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The first `frames` frames of a clip as a player at `fps` would show them.

    Frame j is the one on screen j / fps seconds after the clip's first frame, whatever the clip's own rate, constant or
    not. It is turned and mirrored as the file says, resized to cover height x width, and cropped at the centre. Colours
    are SDR's: the file's own matrix and range, for untagged frames BT.709 from 720 lines on and BT.601 below. Sound is
    ignored.

    Args:
        path: A local file or a URI, in any of `rayvideo.data.containers` and any codec that FFmpeg decodes.

    Returns:
        RGB pixels [frames, height, width, 3], 0..255.

    Raises:
        ClipError: The file is missing, unreadable, damaged, HDR, a picture, has no video or is shorter than
            (frames - 1) / fps.
    """
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    filled, seconds = 0, 0.0
    resize = VideoReformatter()
    try:
        with _open(str(path)) as container:
            stream = _video(path, container)
            pixel_aspect = float(stream.sample_aspect_ratio or 1)
            for frame, seconds in _shown(path, container, stream, frames > 1):
                due = min(frames, math.ceil((seconds - TICK_S) * fps))
                if due > filled:
                    clip[filled:due] = fit(resize, frame, pixel_aspect, height, width)
                    filled = due
                if filled == frames:
                    return clip
    except FrameError as error:
        raise ClipError(path, str(error)) from None
    except av.ArgumentError as error:  # what FFmpeg says of a container that it knows and must not open
        reason = kind(_head(path)) or f"unreadable: none of the containers that are read ({WHITELIST})"
        raise ClipError(path, reason) from error
    except av.InvalidDataError as error:
        raise ClipError(path, kind(_head(path)) or f"unreadable: {error.strerror}") from error
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
    # Without B-frames: on frames of 64 pixels x264's search for them reads memory that it never wrote, so that the same
    # pixels would not give the same bytes.
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
    """Open a clip with FFmpeg; metadata that is no UTF-8 is replaced, which is no reason to refuse a clip."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).type not in (pa.fs.FileType.File, pa.fs.FileType.NotFound):
        raise ClipError(path, "no regular file")  # reading a pipe could wait for ever
    # `inner` is absolute: FFmpeg would take a name such as "concat:a|b" as one of its own protocols.
    source = filesystem.open_input_file(inner) if is_uri(path) else inner
    return av.open(source, metadata_errors="replace", container_options={"format_whitelist": WHITELIST})


def _head(path: str | Path) -> bytes:
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner, compression=None) as source:
        return bytes(source.read(HEAD_BYTES))


def _video(path: str | Path, container: InputContainer) -> VideoStream:
    """The first video stream that is not an album's cover, which containers store as a stream of video too."""
    streams = container.streams
    moving = [stream for stream in streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        what = "audio with a cover picture, " if streams.video and streams.audio else "audio, " if streams.audio else ""
        raise ClipError(path, f"{what}no video stream")
    if moving[0].codec_context is None:
        raise ClipError(path, "no decoder for its video stream")
    return moving[0]


def _shown(
    path: str | Path, container: InputContainer, stream: VideoStream, moving: bool
) -> Iterator[tuple[VideoFrame, float]]:
    """Frames with the time at which each leaves the screen, in seconds after the first frame.

    Args:
        moving: Whether to refuse a file that holds a single frame, however long that is shown.
    """
    stream.codec_context.thread_count = 1  # clips are decoded side by side, each on a core of its own
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
            moving = False
        shown = frame
    if shown is not None:
        if moving:
            raise ClipError(path, kind(_head(path)) or "a still picture, not a clip: it holds a single frame")
        held = float(shown.duration * shown.time_base) if shown.duration and shown.time_base else 0.0
        yield shown, shown.time - start + max(held, 2 * TICK_S)
