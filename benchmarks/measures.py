"""What each measure of an evaluation sees of faults that are known: drawn clips of the menagerie, spoilt on purpose.

    python -m benchmarks.measures > table.md

A row is a fault, done to one clean clip of each caption. Measures are the faulty clips' mean as a multiple of the
clean ones', judges' gains are in standard deviations σ of the clean clips' scores, right kinds and KID are plain. Bold
is what goes beyond the margin in the last row: what other clean clips of the same captions stay within in 95 % of
comparisons. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayvideo.evaluation.metrics import kid, measure
from rayvideo.evaluation.paired import margin
from rayvideo.menagerie.build import WEIGHTS, drawn, frames_first
from rayvideo.menagerie.classifier import KindClassifier
from rayvideo.menagerie.clips import scenes_for
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.quality import JUDGED, score
from rayvideo.menagerie.world import Scene, draw, evaluation_captions

MEASURED = ("motion", "optical_flow", "flicker", "frame_consistency", "contrast", "saturation")
JUDGES = ("judge", "held_out")
SCENES, OTHER_SCENES, REAL_SCENES = 1, 2, 3  # seeds of what captions leave open

Fault = Callable[[Tensor, Scene, torch.Generator], Tensor]
"""A clean clip [F, 3, H, W] in [0, 1], its scene, and chance -> the faulty clip, of the same shape."""
Scores = dict[str, np.ndarray]
"""Metric -> one figure [N] a clip."""


def slowed(clip: Tensor, scene: Scene, chance: torch.Generator) -> Tensor:
    """The first half of the scene in as many frames, drawn and not interpolated."""
    return frames_first(draw(scene, 2 * len(clip) - 1)[: len(clip)])


def jittered(clip: Tensor, scene: Scene, chance: torch.Generator) -> Tensor:
    """Every frame shifted by up to two pixels in both directions."""
    shifts = torch.randint(-2, 3, (len(clip), 2), generator=chance).tolist()
    return torch.stack([frame.roll((down, right), (-2, -1)) for frame, (down, right) in zip(clip, shifts, strict=True)])


def _new(clip: Tensor, chance: torch.Generator, *size: int) -> Tensor:
    return torch.randn(len(clip), *size, generator=chance)


FAULTS: dict[str, Fault] = {
    "frozen": lambda clip, scene, chance: clip[:1].repeat(len(clip), 1, 1, 1),
    "slowed to half": slowed,
    "frames in random order": lambda clip, scene, chance: clip[torch.randperm(len(clip), generator=chance)],
    "jittered, up to 2 pixels": jittered,
    "noise in its place": lambda clip, scene, chance: (0.5 + 0.2 * _new(clip, chance, *clip.shape[1:])).clamp(0, 1),
    "grain, 0.06": lambda clip, scene, chance: (clip + 0.06 * _new(clip, chance, *clip.shape[1:])).clamp(0, 1),
    "light flickers, 0.08": lambda clip, scene, chance: (clip + 0.08 * _new(clip, chance, 1, 1, 1)).clamp(0, 1),
    "colours shifted": lambda clip, scene, chance: clip * clip.new_tensor([1.0, 0.6, 0.5]).view(3, 1, 1),
    "faded to 0.4": lambda clip, scene, chance: 0.5 + 0.4 * (clip - 0.5),
}
ANOTHER = "another caption's clip"


def scores_of(clips: Tensor, captions: Sequence[str], classifier: KindClassifier) -> Scores:
    """Every judge's and every measure's figure of each clip."""
    measures = [measure(clip) for clip in clips]
    judges = {name: load_judge(WEIGHTS / name) for name in JUDGES} | {"right kind": classifier}
    scores = {name: score(judge, clips, captions).numpy() for name, judge in judges.items()}
    return scores | {name: np.array([each[name] for each in measures]) for name in MEASURED}


@torch.no_grad()
def features(clips: Tensor, classifier: KindClassifier) -> Tensor:
    """Features [N, D] for KID, the mean over each clip's judged frames."""
    return torch.stack([classifier.features(clip[list(JUDGED)]).mean(0) for clip in clips])


def cells(clean: Scores, faulty: Scores, other: Scores, captions: Sequence[str]) -> dict[str, str]:
    """Metric -> Markdown of what the fault does to it."""
    found = {}
    for name in (*MEASURED, *JUDGES, "right kind"):
        gap = float(np.mean(faulty[name] - clean[name]))
        far = abs(gap) > (margin(captions, clean[name], other[name]) or 0.0)
        found[name] = f"**{_text(name, gap, clean[name])}**" if far else _text(name, gap, clean[name])
    return found


def _text(name: str, gap: float, clean: np.ndarray) -> str:
    if name in JUDGES:
        return f"{gap / clean.std(ddof=1):+.2f} σ"
    if name in MEASURED:
        return f"×{1 + gap / clean.mean():.2f}"
    return f"{clean.mean() + gap:.0%}"


def _margin_text(name: str, within: float, clean: np.ndarray) -> str:
    if name in JUDGES:
        return f"±{within / clean.std(ddof=1):.2f} σ"
    return f"±{within / clean.mean() if name in MEASURED else within:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take every n-th caption only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    captions = [caption for each in evaluation_captions().values() for caption in each][:: arguments.every]
    classifier = KindClassifier.load(str(WEIGHTS / "classifier.safetensors"))
    scenes = [scene for scene, _ in scenes_for(captions, 1, SCENES)]
    clean = drawn(captions, 1, SCENES)
    real = features(drawn(captions, 2, REAL_SCENES), classifier)
    chance = torch.Generator().manual_seed(0)
    clips = {
        name: torch.stack([fault(clip, scene, chance) for clip, scene in zip(clean, scenes, strict=True)])
        for name, fault in FAULTS.items()
    }
    clips[ANOTHER] = clean[random.Random(0).sample(range(len(clean)), len(clean))]
    before, other = (scores_of(each, captions, classifier) for each in (clean, drawn(captions, 1, OTHER_SCENES)))
    columns = (*MEASURED, *JUDGES, "right kind", "KID")
    print(f"| fault | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", sep="\n")
    for name, faulty in {"none": clean, **clips}.items():
        row = cells(before, scores_of(faulty, captions, classifier), other, captions)
        row["KID"] = f"{kid(features(faulty, classifier), real).mean():.3f}"
        print(f"| {name} | {' | '.join(row[column] for column in columns)} |", flush=True)
    within = {name: margin(captions, before[name], other[name]) or 0.0 for name in columns[:-1]}
    texts = [_margin_text(name, limit, before[name]) for name, limit in within.items()]
    print(f"| margin: other scenes of these captions | {' | '.join(texts)} | |")


if __name__ == "__main__":
    main()
