"""Measures that share nothing with the judges: movement, flicker, colour, and distance to real clips (KID).

Every measure of a clip takes frames [F, 3, H, W] in [0, 1]. Movement and flicker are divided by the clip's own
contrast: a clip that only became more vivid changes by more per frame, yet neither moves nor flickers more.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.optical_flow import MIN_SIDE, mean_flow
from rayvideo.own_modules import resolve_name
from rayvideo.sections import Data, Features

MIN_FRAMES = 4  # that motion is measured on
GRID = 16  # cells of the coarse picture in which movement is seen
FLAT = 0.01  # contrast below which a clip counts as flat
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


class FeatureExtractor(nn.Module, ABC):
    """What `evaluation.features.type` names; deriving from this class is not needed, having its methods is."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: str | None) -> Self:
        """Build the extractor on the CPU."""

    @abstractmethod
    def features(self, frames: Tensor) -> Tensor:
        """Features [N, D] of frames [N, 3, H, W] in [0, 1]."""


def check_measurable(data: Data) -> None:
    """Refuse clips that are too short or too small to measure.

    Raises:
        EvaluationError: naming the options.
    """
    if data.frames < MIN_FRAMES:
        raise EvaluationError(f"data.frames {data.frames}: motion is measured on at least {MIN_FRAMES} frames")
    if max(data.height, data.width) < MIN_SIDE:
        raise EvaluationError(
            f"data.height {data.height}, data.width {data.width}: optical flow is measured on frames of at least "
            f"{MIN_SIDE} pixels; make one of them larger"
        )


def measure(clip: Tensor) -> dict[str, float]:
    """Every measure of one clip, frames [F, 3, H, W] in [0, 1]."""
    measures = {
        "motion": motion,
        "optical_flow": optical_flow,
        "flicker": flicker,
        "frame_consistency": frame_consistency,
        "contrast": contrast,
        "saturation": saturation,
        "colourfulness": colourfulness,
    }
    return {name: function(clip).item() for name, function in measures.items()}


def motion(clip: Tensor) -> Tensor:
    """Lasting change per frame, in units of the clip's coarse contrast; 0 for a still clip.

    With L_t the luma averaged over cells of a 16 x 16 grid, less the frame's mean (a change of light is no movement):
    motion = sqrt(mean (L_{t+2} - L_t)(L_{t+3} - L_{t+1})) / 2 / sqrt(mean L²). The two differences share no frame, so
    what is new in every frame cancels in the mean of their product; what moves on is in both.

    Raises:
        ValueError: fewer than 4 frames.
    """
    if len(clip) < MIN_FRAMES:
        raise ValueError(f"motion needs at least {MIN_FRAMES} frames, got {len(clip)}")
    coarse = F.adaptive_avg_pool2d(_luma(clip), GRID)
    coarse = coarse - coarse.mean((-2, -1), keepdim=True)
    change = coarse[2:] - coarse[:-2]
    lasting = (change[1:] * change[:-1]).mean().clamp(min=0).sqrt() / 2
    return lasting / coarse.square().mean().sqrt().clamp(min=FLAT)


def optical_flow(clip: Tensor) -> Tensor:
    """How far things move from frame to frame, in frame widths, mean over all pixels; 0 for a still clip.

    Raises:
        ValueError: of `mean_flow`.
    """
    return mean_flow(_luma(clip))


def flicker(clip: Tensor) -> Tensor:
    """How far pixels stick out of both neighbouring frames, in units of the clip's contrast; 0 for a still clip.

    flicker = mean |x_t - median(x_{t-1}, x_t, x_{t+1})| / contrast, over colour channels, pixels and inner frames. An
    edge that passes a pixel changes it in one direction, which the median keeps; noise of deviation s that is new in
    every frame gives 0.56 s / contrast. Things thinner than their step per frame count as flicker too.
    """
    triples = clip.unfold(0, 3, 1)
    return (clip[1:-1] - triples.median(-1).values).abs().mean() / contrast(clip).clamp(min=FLAT)


def frame_consistency(clip: Tensor) -> Tensor:
    """Mean correlation of each frame's luma with the next frame's; 1 for a still clip, 0 for unrelated frames."""
    pixels = _luma(clip).flatten(1)
    pixels = pixels - pixels.mean(1, keepdim=True)
    return F.cosine_similarity(pixels[:-1], pixels[1:]).mean()


def contrast(clip: Tensor) -> Tensor:
    """Standard deviation of luma over a frame's pixels, mean over frames; 0 to 0.5."""
    return _luma(clip).flatten(1).std(1, correction=0).mean()


def saturation(clip: Tensor) -> Tensor:
    """Mean saturation of HSV, (max - min) / max over the colour channels; 0 for grey, 1 for pure colours."""
    highest, lowest = clip.amax(1), clip.amin(1)
    return ((highest - lowest) / highest.clamp(min=1e-6)).mean()


def colourfulness(clip: Tensor) -> Tensor:
    """Hasler and Süsstrunk (2003), M3 on a scale of 0 to 255, mean over frames: 0 grey, 33 moderate, 82 high."""
    red, green, blue = (clip * 255).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread, offset = opponents.std(-1, correction=0), opponents.mean(-1)
    return (spread.norm(dim=0) + 0.3 * offset.norm(dim=0)).mean()


def resolve_features(options: Features) -> type[FeatureExtractor]:
    """The class that `evaluation.features.type` names.

    Raises:
        EvaluationError: it can't be imported, or lacks a method.
    """
    try:
        kind: type[FeatureExtractor] = resolve_name(options.type)
    except ImportError as error:
        raise EvaluationError(f"evaluation.features.type {options.type!r} can't be imported: {error}") from error
    if lacking := [f"{name}()" for name in ("load", "features") if not callable(getattr(kind, name, None))]:
        raise EvaluationError(f"evaluation.features.type {options.type!r} lacks {' and '.join(lacking)}")
    return kind


def load_features(options: Features) -> FeatureExtractor:
    """The extractor that `evaluation.features` names, in eval mode.

    Raises:
        EvaluationError: its class can't be imported, or not loaded.
    """
    kind = resolve_features(options)
    try:
        return kind.load(options.checkpoint).eval()
    except Exception as error:
        raise EvaluationError(
            f"evaluation.features: {options.type!r} can't be loaded from {options.checkpoint!r}: {error!r}"
        ) from error


def features_of(extractor: FeatureExtractor, frames: Tensor) -> Tensor:
    """Features [N, D] in fp32 on the CPU of frames [N, 3, H, W].

    Raises:
        EvaluationError: the extractor returned anything else.
    """
    found: Any = extractor.features(frames)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(frames):
        what = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
        raise EvaluationError(
            f"evaluation.features: features() of {type(extractor).__name__} returned {what} for {len(frames)} frames; "
            f"allowed: a tensor [{len(frames)}, D]"
        )
    return found.float().cpu()


def kid(generated: Tensor, reference: Tensor, *, subsets: int = 50, size: int = 200, seed: int = 0) -> Tensor:
    """Kernel inception distance (Bińkowski et al. 2018) of features [N, D] and [M, D], on `subsets` draws: [subsets].

    Each is the unbiased squared MMD with the kernel (x·y / D + 1)^3 of min(size, N, M) rows of both; it may be a little
    below 0 when the two come from one distribution. Mean and standard deviation over the draws are what is reported.
    The draws are a function of `seed`: of each, first the rows of `reference`, then those of `generated`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance  # takes seconds, which only this function should cost

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that features take memory: so few don't
        # Of one subset, so that each call of `compute` is a draw; without a cache, so that each is another one.
        metric = KernelInceptionDistance(
            feature=nn.Identity(),
            subsets=1,
            subset_size=min(size, len(generated), len(reference)),
            compute_with_cache=False,
            sync_on_compute=False,
        )
    metric.update(reference.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # the metric draws from the global generator, which is put back
        torch.default_generator.manual_seed(seed)
        return torch.stack([metric.compute()[0] for _ in range(subsets)])


def _luma(clip: Tensor) -> Tensor:
    return torch.einsum("fchw,c->fhw", clip, clip.new_tensor(LUMA))
