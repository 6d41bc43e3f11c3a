"""A kind classifier that shares nothing with the judges: it counts right kinds and gives features for KID."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from rayvideo.menagerie.fit import Losses, fit
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import KINDS, kind_in
from rayvideo.rewards.base import Reward, RewardError


class KindClassifier(Reward):
    """1.0 where a frame shows the kind that its caption names, else 0.0. A measure, never a training signal."""

    differentiable = False
    prefers_clean = False  # it was trained on frames of any quality

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 96), (96, 128)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.GELU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, groups=4), nn.GroupNorm(8, after), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128 * 4, len(KINDS))

    @classmethod
    def load(cls, checkpoint: str | None, resize: str = "", dtype: torch.dtype = torch.float32) -> Self:
        """Read the safetensors file that `build` wrote; frames are resized in one way only, and numbers are fp32."""
        if checkpoint is None or not Path(checkpoint).is_file():
            raise RewardError(f"kind classifier: checkpoint {checkpoint!r} is not a file")
        classifier = cls()
        classifier.load_state_dict(load_file(checkpoint))
        return classifier.eval().requires_grad_(False)

    def features(self, frames: Tensor) -> Tensor:
        """[N, 3, 64, 64] in [0, 1] -> [N, 512]; other sizes are resized."""
        if frames.shape[-2:] != (64, 64):
            frames = F.interpolate(frames, size=(64, 64), mode="bilinear", antialias=True)
        return F.adaptive_avg_pool2d(self.body(frames * 2 - 1), 2).flatten(1)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Share of right kinds: [N] of 0.0 and 1.0.

        Raises:
            RewardError: a prompt names no kind of this world.
        """
        named = [kind_in(prompt) for prompt in prompts]
        if None in named:
            raise RewardError(f"kind classifier: {prompts[named.index(None)]!r} names none of {', '.join(KINDS)}")
        found = self.head(self.features(frames)).argmax(-1)
        return (found == torch.tensor([KINDS.index(str(kind)) for kind in named], device=found.device)).float()


def train_classifier(pool: Pool, work: Path, *, steps: int, batch: int = 48, seed: int = 31) -> KindClassifier:
    """Train on frames of any quality, so that degraded clips are recognised as well as clean ones."""
    torch.manual_seed(seed)
    classifier = KindClassifier()

    def losses_of(step: int) -> Losses:
        rng = random.Random(f"classifier-{step}")
        indices = [rng.randrange(len(pool.scenes)) for _ in range(batch)]
        images = torch.from_numpy(pool.images(indices, rng, 0.6))
        images = images.roll((rng.randint(-5, 5), rng.randint(-5, 5)), (-2, -1))
        images = (images * (0.8 + 0.4 * torch.rand(batch, 1, 1, 1)) + 0.05 * torch.randn_like(images)).clamp(0, 1)
        kinds = torch.tensor([KINDS.index(pool.scenes[i].kind) for i in indices])
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier.head(classifier.features(images)).float()
        return {"kind": F.cross_entropy(logits, kinds, label_smoothing=0.05)}

    fit("classifier", {"classifier": classifier}, losses_of, steps=steps, lr=2e-3, work=work, average=0.99)
    return classifier


def save_classifier(classifier: KindClassifier, file: Path) -> None:
    """Write the weights as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, file)
