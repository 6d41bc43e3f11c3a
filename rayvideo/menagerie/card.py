"""The model card: what the menagerie is, and the figures of its last build."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from rayvideo.menagerie.quality import Report

HEAD = """# The menagerie

A drawn world of 22 kinds (12 in-domain animals, 5 new animals, 5 things), 8 colours, 5 places and 4 actions.
Written by `python -m rayvideo.menagerie.build`; every weight here comes from its seeds, no outside data or weights.

- `pipeline/`: text-to-video model in diffusers' TextToVideoSDPipeline format, 16 frames of 64x64. Four fifths of its
  training clips were degraded, and no caption says so: its clips look poor, which is what reward fine-tuning repairs.
- `judge/`: the judge that is trained against, in HPSv2's layout. `held_out/`: another width, seed, mix of faults and
  other tricks.
- `classifier.safetensors`: counts right kinds and gives the features for KID. Never trained against.

Scores are raw cosines on frames 0, 4, 8 and 12. KID compares with clean clips. Captions of the base's rows combine
kinds, colours and actions that were never seen together. Pair accuracy says little about a judge; the last two
tables, what gradient ascent gains and what a deliberately greedy run does to the pictures, say more.

"""


def write_card(report: Report, file: Path, seconds: float, head: str = HEAD) -> None:
    """Write the card as Markdown."""
    parts = [head]
    clips = {name: figures for name, figures in report.items() if "right kind" in figures}
    columns = list(next(iter(clips.values())))
    parts.append("| clips | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns) + "\n")
    parts += [
        f"| {name} | " + " | ".join(f"{figures[c]:.4g}" for c in columns) + " |\n" for name, figures in clips.items()
    ]
    for name, figures in report.items():
        if name not in clips:
            parts.append(f"\n| {name} | |\n|---|---|\n")
            parts += [f"| {key} | {value:.4g} |\n" for key, value in figures.items()]
    parts.append(
        f"\nLast build: {seconds / 60:.0f} minutes (stages already done are not counted), torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads.\n"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(parts))
