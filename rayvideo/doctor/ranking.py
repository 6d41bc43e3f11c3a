"""Does a judge rank as it should, and on which scale?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rayvideo.doctor import thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.rewards import Reward
from rayvideo.serving.judging import plural


def blurred(frames: Tensor) -> Tensor:
    """Frames [..., 3, H, W] without detail finer than an eighth of their side."""
    side = max(2, min(frames.shape[-2:]) // 8)
    pictures = frames.flatten(0, -4)
    soft = F.interpolate(F.avg_pool2d(pictures, side), frames.shape[-2:], mode="bilinear")
    return soft.view(frames.shape)


def noisy(frames: Tensor) -> Tensor:
    """Frames with noise of 0.15 of the range of pixels, the same at every call."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (frames + 0.15 * noise.to(frames.device)).clamp(0, 1)


def banded(frames: Tensor) -> Tensor:
    """Frames with four levels a channel."""
    return (3 * frames).round() / 3


DEGRADATIONS: dict[str, Callable[[Tensor], Tensor]] = {"blur": blurred, "noise": noisy, "banding": banded}


@torch.no_grad()
def quality(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """The recipe's frames, or clips, above their blurred, noisy and banded versions."""
    name = "clean above degraded"
    if not reward.prefers_clean:
        return Finding(name, None, "its class says prefers_clean = False")
    clean = reward.score(items, list(prompts))
    won = {kind: _wins(clean, reward.score(spoil(items), list(prompts))) for kind, spoil in DEGRADATIONS.items()}
    share = sum(won.values()) / len(won)
    return Finding(
        name,
        share >= thresholds.WINS,
        f"{share:.0%} of pairs: " + ", ".join(f"{kind} {part:.0%}" for kind, part in won.items()),
        "is a higher score better (sign)? Is this the right checkpoint? A judge of something else than quality says "
        "prefers_clean = False in its class",
    )


@torch.no_grad()
def caption(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """Each item with its own caption above the same one with another clip's; no two `items` are of one clip."""
    name = "right above wrong caption"
    if not reward.reads_captions:
        return Finding(name, None, "its class says reads_captions = False")
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 2:
        return Finding(name, None, f"all clips that were looked at have the caption {distinct[0]!r}")
    scores = torch.stack([reward.score(items, [text] * len(items)) for text in distinct], dim=1)
    reach = ((scores.amax(1) - scores.amin(1)).max() / scores.abs().max().clamp(min=1e-12)).item()
    mend = (
        f"score() must use its prompts: are they passed on, in the {plural(reward)}' order, to the right tokenizer? A "
        f"judge of {plural(reward)} alone says reads_captions = False in its class"
    )
    if reach < thresholds.SPREAD:
        return Finding(name, False, "scores don't change with the caption", mend)
    matching = torch.tensor([distinct.index(text) for text in prompts], device=scores.device)
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, matching[:, None], False)
    right = scores.gather(1, matching[:, None]).expand_as(scores)
    share = _wins(right[others], scores[others])
    return Finding(name, share >= thresholds.WINS, f"{share:.0%} of {int(others.sum())} pairs", mend)


@torch.no_grad()
def scale(reward: Reward, items: Tensor, prompts: Sequence[str]) -> Finding:
    """Where the scores of the recipe's frames, or clips, lie; they must differ if a model is to learn from them."""
    name = "score scale"
    scores = reward.score(items, list(prompts)).float()
    mean, sd, low, high = scores.mean().item(), scores.std().item(), scores.min().item(), scores.max().item()
    if high - low > thresholds.SPREAD * scores.abs().max():
        return Finding(
            name, True, f"mean {mean:.4g}, sd {sd:.3g}, {low:.4g} to {high:.4g} on {len(scores)} {plural(reward)}"
        )
    measured = f"{mean:.4g} for all {len(scores)} {plural(reward)}"
    if not reward.differentiable:
        return Finding(name, None, measured)
    return Finding(
        name,
        False,
        measured,
        f"a judge that tells no two {plural(reward)} apart has nothing to teach: is it saturated?",
    )


def _wins(better: Tensor, worse: Tensor) -> float:
    """Share of pairs in which `better` scores higher; a draw is half a win."""
    return ((better > worse).float() + 0.5 * (better == worse).float()).mean().item()
