"""The README's picture: `python -m rayvideo.menagerie.picture --run runs/first --out docs/before-after.png`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from rayvideo.data.video import read_clip
from rayvideo.menagerie.world import FPS, FRAMES, SIZE
from rayvideo.paths import path_argument

SHOWN = (1, 5, 9, 13)  # frames of each clip
ZOOM, LINE = 2, 22


def before_after(run: Path, per_set: int, columns: int = 2) -> Image.Image:
    """Frames of base clips above those of tuned ones, for the first `per_set` previews of each caption set."""
    rows: list[dict[str, Any]] = pq.read_table(run / "clips.parquet", filters=[("file", "!=", "")]).to_pylist()
    files = {(row["set"], row["caption"], row["seed"], row["variant"]): row["file"] for row in rows}
    pairs = list(dict.fromkeys(key[:3] for key in files))
    chosen = [
        pair for name in dict.fromkeys(p[0] for p in pairs) for pair in [p for p in pairs if p[0] == name][:per_set]
    ]
    font = ImageFont.load_default(14)
    side = SIZE * ZOOM
    width, height = len(SHOWN) * side + 70, 2 * side + LINE + 8
    sheet = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, pair in enumerate(chosen):
        left, top = index % columns * width, index // columns * height
        pen.text((left + 62, top + 3), f"{pair[1]}  ({pair[0]})", fill="black", font=font)
        for line, variant in enumerate(("base", "tuned")):
            down = top + LINE + line * side
            pen.text((left + 10, down + side // 2 - 8), variant, fill="black", font=font)
            key = (*pair, variant)
            clip = read_clip(run / files[key], FRAMES, FPS, SIZE, SIZE)
            strip = np.concatenate([clip[frame] for frame in SHOWN], axis=1)
            sheet.paste(
                Image.fromarray(strip).resize((len(SHOWN) * side, side), Image.Resampling.NEAREST), (left + 60, down)
            )
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=path_argument, required=True, help="run folder that jobs/evaluate.py wrote into")
    parser.add_argument("--out", type=path_argument, required=True)
    parser.add_argument("--per-set", type=int, default=2)
    arguments = parser.parse_args()
    before_after(arguments.run, arguments.per_set).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
