"""What the card says of the menagerie: figures that are measured at every build, and the sheet of pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from rayvideo.evaluation.generate import generate_clips
from rayvideo.evaluation.metrics import kid, measure
from rayvideo.menagerie.classifier import KindClassifier
from rayvideo.menagerie.judges import TRAINING_JUDGE, trick
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import FRAMES, KINDS, SIZE
from rayvideo.models import VideoModel
from rayvideo.rewards.base import Reward

Figures = dict[str, float]
Report = dict[str, Figures]
JUDGED = (0, 4, 8, 12)


@torch.no_grad()
def autoencoder_figures(vae: AutoencoderKL, pool: Pool, picture: Path) -> Figures:
    """Error of the autoencoder on unseen frames of varied quality; `picture` shows frames above their copies."""
    frames = torch.from_numpy(pool.images(range(len(pool.scenes)), random.Random(5), 0.5))
    rebuilt = (vae.decode(vae.encode(frames * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
    rows = [torch.cat(list(x[i : i + 12]), -1) for i in (0, 12) for x in (frames, rebuilt)]
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((torch.cat(rows, -2) * 255).round().byte().permute(1, 2, 0).numpy()).save(picture)
    error = (frames - rebuilt).square().mean()
    return {"L1": (frames - rebuilt).abs().mean().item(), "PSNR, dB": (-10 * error.log10()).item()}


def generate(model: VideoModel, captions: Sequence[str], steps: int = 20, length: int = FRAMES) -> Tensor:
    """One clip per caption with seed 0: [N, length, 3, 64, 64] in [0, 1]."""
    return generate_clips(
        model, captions, [0] * len(captions), steps=steps, guidance=3.0, frames=length, height=SIZE, width=SIZE
    )


@torch.no_grad()
def score(judge: Reward, clips: Tensor, captions: Sequence[str]) -> Tensor:
    """Mean score [N] of each clip over the frames that the paper's evaluation judges."""
    frames = clips[:, JUDGED]
    names = [caption for caption in captions for _ in JUDGED]
    return judge.score(frames.flatten(0, 1), names).unflatten(0, (len(clips), len(JUDGED))).mean(1)


def clip_figures(
    clips: Tensor, captions: Sequence[str], judges: Mapping[str, Reward], classifier: KindClassifier, clean: Tensor
) -> Figures:
    """Judges' means and deviations, right kinds, KID to `clean` clips, motion, flicker and colour."""
    figures: Figures = {}
    for name, judge in judges.items():
        scores = score(judge, clips, captions)
        figures |= {f"{name}": scores.mean().item(), f"{name} sd": scores.std().item()}
    figures["right kind"] = score(classifier, clips, captions).mean().item()
    with torch.no_grad():
        frames = (c[:, JUDGED] for c in (clips, clean))
        near, far = (classifier.features(f.flatten(0, 1)).unflatten(0, f.shape[:2]).mean(1) for f in frames)
    figures["KID"] = kid(near, far).mean().item()
    measures = [measure(clip) for clip in clips]
    kept = ("motion", "optical_flow", "flicker", "contrast", "saturation")
    figures |= {key: float(np.mean([m[key] for m in measures])) for key in kept}
    return figures


@torch.no_grad()
def judge_figures(judge: Reward, pool: Pool, vae: AutoencoderKL, seed: int = 5) -> Figures:
    """Pair accuracies on scenes that no judge was trained on, seen through the autoencoder."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    count = min(200, len(pool.scenes))
    scenes = pool.scenes[:count]
    names = [f"{scene.colour} {scene.kind}" for scene in scenes]
    wrong = [f"{s.colour} {rng.choice([k for k in KINDS if k != s.kind])}" for s in scenes]
    frame = [rng.randrange(FRAMES) for _ in range(count)]
    clean = np.stack([pool.clip(i)[f] for i, f in enumerate(frame)])
    poor = np.stack([pool.of_varied_quality(i, seed + i, share=1.0)[f] for i, f in enumerate(frame)])
    both = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (clean, poor)]
    both = [(vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1) for x in both]
    right = [judge.score(x, names) for x in both]
    figures = {
        "clean over degraded": (right[0] > right[1]).float().mean().item(),
        "right over wrong kind, clean": (right[0] > judge.score(both[0], wrong)).float().mean().item(),
        "right over wrong kind, degraded": (right[1] > judge.score(both[1], wrong)).float().mean().item(),
    }
    strength = torch.rand(count, 1, 1, 1)
    for name in (*TRAINING_JUDGE.tricks, "grain", "posterise", "shift"):
        cheated = judge.score(trick(name, both[0], vae, strength), names)
        figures[f"clean over trick: {name}"] = (right[0] > cheated).float().mean().item()
    return figures


def perturbation_gain(
    judge: Reward, other: Reward, clips: Tensor, captions: Sequence[str], reach: float = 0.1
) -> Figures:
    """What ten sign steps on smooth pixels (8x8 cells, at most `reach`) gain, in sd of the clips' scores."""
    frames = clips[:, 8]
    spread = {j: score(j, clips, captions).std() for j in (judge, other)}
    change = torch.zeros(len(frames), 3, 8, 8)

    def shown(change: Tensor) -> Tensor:
        smooth = F.interpolate(change.clamp(-1, 1), size=frames.shape[-2:], mode="bicubic", align_corners=False)
        return (frames + reach * smooth).clamp(0, 1)

    for _ in range(10):
        change.requires_grad_(True)
        (gradient,) = torch.autograd.grad(judge.score(shown(change), captions).sum(), change)
        change = change.detach() + 0.25 * gradient.sign()
    with torch.no_grad():
        gains = [
            (j.score(shown(change), captions) - j.score(frames, captions)).mean() / spread[j] for j in (judge, other)
        ]
    return {"own gain, sd": gains[0].item(), "other judge's gain, sd": gains[1].item()}


def sheet(rows: Sequence[Tensor], file: Path, frames: Sequence[int] = (0, 3, 6, 9, 12, 15)) -> None:
    """Clips [F, 3, H, W] below each other, their frames side by side, as PNG."""
    pictures = torch.cat([torch.cat([clip[f] for f in frames], -1) for clip in rows], -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pictures.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(file)
