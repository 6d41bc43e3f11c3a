"""Draw clips of varied quality as H.264 mp4 files with a list: `python -m rayvideo.menagerie.clips --out DIR`."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayvideo.data.video import write_clip
from rayvideo.menagerie.world import (
    FPS,
    FRAMES,
    IN_DOMAIN,
    Scene,
    caption_of,
    degrade,
    draw,
    evaluation_captions,
    sample_degradation,
    sample_scene,
    scene_of,
)
from rayvideo.paths import path_argument
from rayvideo.progress import progress

CAPTIONS = Path(__file__).parent / "captions"

Described = tuple[Scene, str]  # and its caption


def training_scenes(count: int, seed: int) -> list[Described]:
    """Scenes of the in-domain kinds, each with one of the ways to describe it."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng, IN_DOMAIN) for _ in range(count)]
    return [(scene, caption_of(scene, rng)) for scene in scenes]


def scenes_for(captions: Sequence[str], each: int, seed: int) -> list[Described]:
    """`each` scenes that a caption describes, for all captions."""
    rng = random.Random(seed)
    return [(scene_of(caption, rng), caption) for caption in captions for _ in range(each)]


def write_clips(folder: Path, scenes: Sequence[Described], degraded: float = 0.0, length: int = FRAMES) -> Path:
    """Write the scenes' clips and `clips.txt`, a list `path|||caption` as the reference's; those there are kept.

    `length` is the frames of each, `degraded` the share of clips of poor quality, which their captions never mention.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (scene, caption) in enumerate(progress(f"drawing clips into {folder}", len(scenes), scenes)):
        name = f"{index:04d}-{scene.kind}-{scene.seed:08x}.mp4"
        if not (folder / name).exists():
            frames = degrade(draw(scene, length), sample_degradation(random.Random(scene.seed), degraded), scene.seed)
            write_clip(folder / name, (frames * 255).round().astype(np.uint8), fps=FPS)
        lines.append(f"{name}|||{caption}\n")
    listing = folder / "clips.txt"
    listing.write_text("".join(lines), encoding="utf-8")
    return listing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=path_argument, required=True, help="folder for train/ and clean/")
    parser.add_argument("--count", type=int, default=160, help="clips for training, of varied quality")
    parser.add_argument("--clean", type=int, default=2, help="clean clips of each evaluation caption, for KID")
    parser.add_argument("--length", type=int, default=FRAMES, help="frames of each clip")
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    write_clips(arguments.out / "train", training_scenes(arguments.count, arguments.seed), 0.8, arguments.length)
    for name, captions in evaluation_captions().items():
        scenes = scenes_for(captions, arguments.clean, arguments.seed + 1)
        write_clips(arguments.out / "clean" / name, scenes, length=arguments.length)


if __name__ == "__main__":
    main()
