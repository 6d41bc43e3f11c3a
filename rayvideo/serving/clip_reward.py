"""How a clip is judged: which of its frames, by whom, and what one reward becomes of it (paper §4.2, Eq. 7, 8)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from rayvideo import sections
from rayvideo.rewards.base import RewardError
from rayvideo.rewards.temporal import attenuation, clip_frames, rate_per_frame, video_reward
from rayvideo.sections import Judge
from rayvideo.serving.pool import Answer, RewardPool, Sent
from rayvideo.serving.slopes import cosines, scored
from rayvideo.serving.wire import Times


class Selection(NamedTuple):
    """Frames of a clip that some of the judges are shown, the same of every clip."""

    judges: list[Judge]
    indices: Tensor | None
    """[F'], ascending; None: those that are drawn, for judges of frames."""
    times: Times | None
    """Of clips' frames, in seconds."""


@dataclass
class Request:
    """Clips that are away at the judges."""

    pixels: Tensor
    """[B, U, 3, H, W]"""
    drawn: Tensor
    """[B, S]"""
    sent: list[Sent]
    """What was sent to whom, in parts of `pixels`."""


@dataclass
class Judged:
    """What the judges say of a batch of clips."""

    rewards: Tensor
    """[B], fp32; differentiable by the pixels if a gradient was asked for."""
    scores: dict[str, Tensor] = field(default_factory=dict)
    """Judge -> its raw, unweighted scores: [B, S] of drawn frames, or [B] of clips."""
    gradient_norm: dict[str, float] = field(default_factory=dict)
    """Judge -> L2 norm of d(sum of its raw scores), by the frames that all judges were sent, or else by the pixels."""
    cosine: dict[tuple[str, str], float] = field(default_factory=dict)
    """Two judges -> cosine of these gradients: negative where they pull in opposite directions."""
    micro_batch: dict[str, int] = field(default_factory=dict)
    """Judge -> frames, or clips, per forward pass: less than the recipe's after a lack of memory."""
    wait_s: float = 0.0
    """Seconds that the caller stood waiting for the judges."""

    def by_clip(self) -> dict[str, Tensor]:
        """Judge -> its score of each clip [B], without attenuation: the mean over the drawn frames, or the clip's."""
        return {name: scores.mean(1) if scores.ndim == 2 else scores for name, scores in self.scores.items()}


class ClipReward:
    """Asks a pool's judges about clips, and makes one reward of what they say.

    Judges of frames see the frames that are drawn, one per segment (SegVR); their scores are attenuated and averaged
    (TAR, Eq. 7, 8). Judges of clips see what they ask for, and score the clip as a whole. The weighted sum is the
    reward.

    Args:
        pool: Its judges are waited for.
        frames: Of a clip, F.
        fps: Frames per second of a clip.

    Raises:
        RewardError: a judge asks for longer clips.
    """

    def __init__(self, pool: RewardPool, options: sections.Rewards, frames: int, fps: float) -> None:
        self._pool = pool
        self._segments = options.segments
        self._rate = rate_per_frame(options.attenuation, options.attenuation_unit, frames)
        self._frames = frames
        self._fps = fps
        self._selections = self._selected()

    def _selected(self) -> list[Selection]:
        """Judges that look at the same frames, together."""
        selections: dict[object, Selection] = {}
        for judge in self._pool.judges:
            view = self._pool.views[judge.name]
            if view.selection not in selections:
                indices, times = None, None
                if view.sees == "clip":
                    try:
                        indices, seconds = clip_frames(self._frames, self._fps, view.fps, view.frames)
                    except ValueError as error:
                        raise RewardError(f"judge {judge.name!r} {error}; raise data.frames") from error
                    times = tuple(seconds.tolist())
                selections[view.selection] = Selection([], indices, times)
            selections[view.selection].judges.append(judge)
        return list(selections.values())

    def shown(self, drawn: Tensor) -> Tensor:
        """The frames that the judges look at and that must be decoded, [B, U], ascending; U is the same for all clips.

        Where one clip needs fewer than another, its last one is repeated.

        Args:
            drawn: The frames that judges of frames are to see, [B, S], ascending: all, if there are no other judges.
        """
        parts = [drawn if one.indices is None else one.indices.expand(len(drawn), -1) for one in self._selections]
        if len(parts) == 1 and parts[0] is drawn:
            return drawn
        wanted = [row.unique() for row in torch.cat(parts, dim=1)]
        longest = max(map(len, wanted))
        return torch.stack([torch.cat([one, one[-1:].expand(longest - len(one))]) for one in wanted])

    def submit(self, pixels: Tensor, shown: Tensor, drawn: Tensor, captions: Sequence[str], gradient: bool) -> Request:
        """Send clips to all judges, without waiting for what they say.

        Args:
            pixels: The frames `shown` of each clip, [B, U, 3, H, W] in [0, 1]. They require a gradient if it is asked
                for.
            shown: What `shown(drawn)` is, [B, U].
            drawn: As it was given to `shown`, [B, S].
            captions: Of the B clips.
        """
        sent = []
        for judges, indices, times in self._selections:
            if indices is None:
                frames = _picked(pixels, shown, drawn).flatten(0, 1)
                repeated = [caption for caption in captions for _ in range(drawn.shape[1])]
                sent.append(self._pool.send(frames, repeated, judges, gradient))
            else:
                clips = _picked(pixels, shown, indices.expand(len(pixels), -1))
                sent.append(self._pool.send(clips, captions, judges, gradient, times))
        return Request(pixels, drawn, sent)

    def result(self, request: Request) -> Judged:
        """Wait for the judges' scores and make rewards of them.

        Raises:
            RewardError: naming the judge that failed or took longer than its `timeout_s`.
        """
        pixels, drawn = request.pixels, request.drawn
        found: dict[str, tuple[Sent, Answer]] = {}
        started = time.perf_counter()
        for sent in request.sent:
            found |= {name: (sent, answer) for name, answer in self._pool.receive(sent).items()}
        judged = Judged(torch.zeros(len(pixels), device=pixels.device), wait_s=time.perf_counter() - started)
        weights = attenuation(drawn, self._frames, self._rate).to(pixels.device)
        for judge in self._pool.judges:
            sent, answer = found[judge.name]
            scores = scored(sent.items, answer.scores, answer.slope)
            if sent.times is None:
                scores = scores.view(drawn.shape)
            judged.scores[judge.name] = scores.detach()
            judged.micro_batch[judge.name] = answer.micro_batch
            reward = video_reward(scores, weights) if sent.times is None else scores
            judged.rewards = judged.rewards + judge.weight * reward
        slopes = self._slopes(request, found)
        judged.gradient_norm = {name: slope.norm().item() for name, slope in slopes.items()}
        judged.cosine = cosines(slopes)
        return judged

    def _slopes(self, request: Request, found: Mapping[str, tuple[Sent, Answer]]) -> dict[str, Tensor]:
        """Judge -> d(sum of its raw scores), by what all were sent, or else by the pixels; {} without gradients."""
        slopes: dict[str, Tensor] = {}
        for judge in self._pool.judges:
            sent, answer = found[judge.name]
            if answer.slope is None:
                continue
            slopes[judge.name] = answer.slope
            if len(request.sent) > 1:
                (slopes[judge.name],) = torch.autograd.grad(sent.items, request.pixels, answer.slope, retain_graph=True)
        return slopes

    def sights(self, pixels: Tensor) -> dict[str, str]:
        """Judge -> in words, what it sees of a clip, by pixels [..., 3, H, W] such as are submitted."""
        sizes, words = self._pool.sights(pixels), {}
        for judges, indices, _ in self._selections:
            count = self._segments if indices is None else len(indices)
            for judge in judges:
                fps = self._pool.views[judge.name].fps
                nearest = "" if fps is None else f", those nearest to {fps:g} fps"
                sent = f"{count} of {self._frames} frames at {self._fps:g} fps{nearest}"
                words[judge.name] = f"{sent}, {sizes[judge.name]}"
        return {judge.name: words[judge.name] for judge in self._pool.judges}


def _picked(pixels: Tensor, shown: Tensor, wanted: Tensor) -> Tensor:
    """Of pixels [B, U, 3, H, W], which are the frames `shown` [B, U], the frames `wanted` [B, M]: [B, M, 3, H, W]."""
    if torch.equal(shown, wanted):
        return pixels
    places = torch.searchsorted(shown, wanted.contiguous()).clamp(max=shown.shape[1] - 1)
    if not torch.equal(shown.gather(1, places), wanted):
        raise ValueError(f"frames {shown.tolist()} were decoded, but judges look at {wanted.tolist()}")
    return pixels[torch.arange(len(pixels))[:, None], places]
