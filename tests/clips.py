"""Small real clips for tests, drawn and encoded on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayvideo.data.video import write_clip

CAPTIONS = ("red ball", "blue ball", "red ball", "green ball rising", "blue ball", "white ball")


def ball(number: int, frames: int = 16, height: int = 64, width: int = 64) -> np.ndarray:
    """A coloured disc that crosses the picture: uint8 [frames, height, width, 3]."""
    rng = np.random.default_rng(number)
    colour, ground = rng.integers(0, 256, (2, 3))
    y, x = np.mgrid[:height, :width]
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    for f in range(frames):
        centre = width * (f + 1) / (frames + 1)
        inside = (x - centre) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
        clip[f] = np.where(inside[..., None], colour, ground)
    return clip


def save_clips(folder: Path) -> Path:
    """Write a 64x64 H.264 clip of 16 frames at 8 fps for each caption, the caption beside it, and `list.txt` of all."""
    lines = []
    for number, caption in enumerate(CAPTIONS):
        write_clip(folder / f"ball{number}.mp4", ball(number))
        (folder / f"ball{number}.txt").write_text(caption)
        lines.append(f"ball{number}.mp4|||{caption}")
    (folder / "list.txt").write_text("\n".join(lines))
    return folder
