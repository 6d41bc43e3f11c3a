"""Draw clips of varied quality as H.264 mp4 files with a list: `python -m rayvideo.menagerie.clips --out DIR`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rayvideo.data.video import write_clip
from rayvideo.menagerie.world import FPS, IN_DOMAIN, caption_of, degrade, draw, sample_degradation, sample_scene

CAPTIONS = Path(__file__).parent / "captions"


def write_clips(folder: Path, count: int, seed: int, degraded: float, kinds: tuple[str, ...] = IN_DOMAIN) -> Path:
    """Write `count` clips and `clips.txt`, a list `path|||caption` as the reference's; clips already there are kept.

    `degraded` is the share of clips of poor quality, which their captions never mention.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = []
    for index in tqdm(range(count), desc=f"drawing clips into {folder}", mininterval=1):
        scene = sample_scene(rng, kinds)
        caption, how = caption_of(scene, rng), sample_degradation(rng, degraded)
        name = f"{scene.kind}-{seed}-{index:04d}.mp4"
        if not (folder / name).exists():
            frames = degrade(draw(scene), how, scene.seed)
            write_clip(folder / name, (frames * 255).round().astype(np.uint8), fps=FPS)
        lines.append(f"{name}|||{caption}\n")
    listing = folder / "clips.txt"
    listing.write_text("".join(lines), encoding="utf-8")
    return listing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and clean/")
    parser.add_argument("--count", type=int, default=160, help="clips for training, of varied quality")
    parser.add_argument("--clean", type=int, default=96, help="clean clips of all kinds, which KID compares with")
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    write_clips(arguments.out / "train", arguments.count, arguments.seed, 0.8)
    write_clips(arguments.out / "clean", arguments.clean, arguments.seed + 1, 0.0)


if __name__ == "__main__":
    main()
