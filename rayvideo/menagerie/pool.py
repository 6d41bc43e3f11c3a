"""Many drawn scenes kept as arrays, from which the menagerie's networks draw their batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rayvideo.menagerie.world import FRAMES, SIZE, Scene, degrade, draw, sample_degradation, sample_scene


def _draw_bytes(scene: Scene, length: int) -> np.ndarray:
    return (draw(scene, length) * 255).round().astype(np.uint8)


@dataclass
class Pool:
    """Scenes and their clean frames, uint8 [N, F, 64, 64, 3]."""

    scenes: Sequence[Scene]
    frames: np.ndarray

    @classmethod
    def drawn(cls, count: int, seed: int, work: Path, length: int = FRAMES) -> Pool:
        """Draw `count` scenes without held-out pairs, of `length` frames each; they are kept in `work` and reused."""
        rng = random.Random(seed)
        scenes = [sample_scene(rng) for _ in range(count)]
        file = work / f"pool-{seed}-{count}-{length}.npy"
        if not file.is_file():
            work.mkdir(parents=True, exist_ok=True)
            frames = np.empty((count, length, SIZE, SIZE, 3), np.uint8)
            with ProcessPoolExecutor() as workers:
                drawn = workers.map(_draw_bytes, scenes, repeat(length), chunksize=16)
                for index, clip in enumerate(tqdm(drawn, total=count, desc="drawing", mininterval=2)):
                    frames[index] = clip
            temporary = file.with_suffix(".tmp.npy")
            np.save(temporary, frames)
            temporary.replace(file)
        return cls(scenes, np.load(file, mmap_mode="r"))

    @classmethod
    def of_kinds(cls, kinds: tuple[str, ...], count: int, seed: int, length: int = FRAMES) -> Pool:
        """Draw a few scenes of some kinds, kept in memory only."""
        rng = random.Random(seed)
        scenes = [sample_scene(rng, kinds) for _ in range(count)]
        return cls(scenes, np.stack([_draw_bytes(scene, length) for scene in scenes]))

    def clip(self, index: int) -> np.ndarray:
        """Clean frames, float32 [F, 64, 64, 3] in [0, 1]."""
        return np.asarray(self.frames[index], np.float32) / 255

    def of_varied_quality(self, index: int, seed: int, share: float = 0.8, frames: slice = slice(None)) -> np.ndarray:
        """The clip, or some of its frames, as pre-training meets it: degraded with probability `share`."""
        return degrade(self.clip(index)[frames], sample_degradation(random.Random(seed), share), seed)

    def images(self, indices: Sequence[int], rng: random.Random, share: float) -> np.ndarray:
        """One frame of each clip, degraded with the given share: float32 [N, 3, 64, 64]."""
        frames = []
        for index in indices:
            frame = self.frames[index, rng.randrange(self.frames.shape[1])][None].astype(np.float32) / 255
            how = sample_degradation(rng, share)
            frame = degrade(frame, how, rng.getrandbits(32))[0]
            frames.append(frame[:, ::-1] if rng.random() < 0.5 else frame)
        return np.stack(frames).transpose(0, 3, 1, 2)
