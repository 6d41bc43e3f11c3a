"""Pictures in which the frames of several clips stand one above the other, to be compared by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

STRIP_FRAMES = 8
STRIP_HEIGHT = 128  # pixels of a frame in a strip

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]


def draw_strip(rows: Sequence[tuple[str, Frames]], caption: str) -> Image.Image:
    """Rows of evenly spaced frames below their caption, each row with its label."""
    font = ImageFont.load_default(size=16)
    margin, label, gap = 8, 52, 4
    frames = len(rows[0][1])
    shown = np.linspace(0, frames - 1, min(STRIP_FRAMES, frames)).round().astype(int)
    width = round(STRIP_HEIGHT * rows[0][1].shape[2] / rows[0][1].shape[1])
    size = (label + len(shown) * (width + gap) + margin, 32 + len(rows) * (STRIP_HEIGHT + gap) + margin)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), caption, fill="black", font=font)
    for r, (name, clip) in enumerate(rows):
        top = 32 + r * (STRIP_HEIGHT + gap)
        draw.text((margin, top + STRIP_HEIGHT // 2 - 8), name, fill="dimgrey", font=font)
        for c, index in enumerate(shown):
            picture = Image.fromarray(clip[index]).resize((width, STRIP_HEIGHT), Image.Resampling.BICUBIC)
            sheet.paste(picture, (label + c * (width + gap), top))
    return sheet
