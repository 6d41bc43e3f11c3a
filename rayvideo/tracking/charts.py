"""Names of figures in MLflow, by which its pages order their charts.

MLflow makes one group of charts of all metrics (and images) whose names are the same up to the last slash, sorts the
groups by name, and puts names without a slash last. So every group begins with a number. A metric whose newest step is
0 becomes a bar, every other one a line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

REWARD, HELD_OUT, MOTION, CLIPS = "1-reward", "2-held-out", "3-motion", "4-clips"
PICTURE, TRAINING, JUDGES, SECONDS, BASE = "5-picture", "6-training", "7-judges", "8-seconds", "9-base"

MEASURES = {
    "kid": HELD_OUT,  # no judge, but no training saw it either
    "diversity": HELD_OUT,
    "motion": MOTION,
    "optical_flow": MOTION,
    "flicker": MOTION,
    "frame_consistency": MOTION,
    "contrast": PICTURE,
    "saturation": PICTURE,
    "colourfulness": PICTURE,
}


def step_charts(values: Mapping[str, float]) -> dict[str, float]:
    """A training step's figures under their names in MLflow, by their keys in metrics.jsonl."""
    return {step_chart(key): value for key, value in values.items()}


def step_chart(key: str) -> str:
    """The name in MLflow of a figure of metrics.jsonl; those of an objective of the user's too.

    `score/JUDGE` is in the first group, `score/JUDGE/segment-0` and `judge_cosine/A/B` in that of judges.
    """
    kind, _, rest = key.partition("/")
    if key == "reward":
        return f"{REWARD}/reward"
    if not rest:
        return f"{TRAINING}/{key}"
    if kind == "seconds":
        return f"{SECONDS}/{rest}"
    if kind == "score" and "/" not in rest:
        return f"{REWARD}/score.{rest}"
    if kind == "score" or kind.startswith("judge_"):
        return f"{JUDGES}/{_dotted(key)}"
    return key


def clip_chart(source: str, captions: str, metric: str, *, held_out: Collection[str] = ()) -> str:
    """The name in MLflow of a figure of generated clips.

    Args:
        source: `eval`, an evaluation's clips; `eval-50-steps`, those of another of its chains; `preview`, a training's.
        captions: Name of the caption set.
        metric: A measure, or the name of a judge.
        held_out: The judges that training does not listen to.
    """
    group = MEASURES.get(metric, HELD_OUT if metric in held_out else REWARD)
    return f"{group}/{_dotted(source, captions, metric)}"


def base_chart(source: str, captions: str, metric: str) -> str:
    """The same of the base's clips, where these do not begin the tuned model's curve."""
    return f"{BASE}/{_dotted(source, captions, metric)}"


def guard_chart(captions: str | None, metric: str, *, held_out: Collection[str] = ()) -> str:
    """The name in MLflow of a change that guards found.

    Args:
        captions: Name of the caption set; None for all of them together.
        metric: As for `clip_chart`.
        held_out: As for `clip_chart`.
    """
    group = MEASURES.get(metric, HELD_OUT if metric in held_out else REWARD)
    return f"{group}/{_dotted('guards', *([] if captions is None else [captions]), metric)}"


def strip_key(source: str, captions: str, caption: str) -> str:
    """The key of a caption's strips, one a step: the same in all runs, so that runs can be compared by it."""
    return f"{CLIPS}/{_dotted(source, captions)} {_dotted(caption)}"


def _dotted(*parts: str) -> str:
    """One name of several, in which no slash opens another group."""
    return ".".join(parts).replace("/", ".")
