"""Judges of the menagerie: small open_clip models that learn, as HPSv2 did, from preference pairs.

A judge that only knows clean and degraded frames is fooled within a few dozen steps of gradient ascent. So it also
learns that nothing may be gained by tricks: smooth perturbations, colour casts, oversaturation, noise through the
decoder, and whatever its own gradient finds, must lose against the frame they started from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from open_clip import CLIP, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from tqdm import tqdm

from rayvideo.menagerie.denoiser import CONTEXT, build_tokenizer, tokens_of
from rayvideo.menagerie.fit import Losses, fit
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import COLOURS, FRAMES, KINDS, Scene, caption_of, degrade, sample_degradation
from rayvideo.precision import CPU, autocast
from rayvideo.rewards.hpsv2 import HPSv2

Cheats = tuple[np.ndarray, list[str]]
"""Frames of hacked, of base and of drawn clips for the same captions, uint8 [N, 3, 64, 64, 3], and the captions."""

SHARPNESS = 30.0  # cosine differences are multiplied by this before the logistic loss: 0.1 apart is nearly certain
MARGIN = 0.2  # cosine by which a clean frame should beat its degraded version, and a half degraded one its share of it


@dataclass(frozen=True)
class JudgeSpec:
    """What makes one judge different from another."""

    name: str
    seed: int
    width: int
    layers: int
    patch: int
    tricks: tuple[str, ...]
    steps: int
    faults: tuple[int, ...] = (2, 2, 3)  # how many at once its degraded frames have
    caption_steps: int = 1500  # of matching frames with captions, before any preference
    second_steps: int = 0  # of the round that learns from clips of a hacked run as well
    adversary_steps: int = 2
    batch: int = 16


TRAINING_JUDGE = JudgeSpec(
    "judge", 11, 128, 4, 8, ("smooth", "cast", "vivid", "decoded_noise", "ringing"), steps=900, second_steps=200
)
HELD_OUT_JUDGE = JudgeSpec(
    "held_out", 23, 96, 4, 8, ("smooth", "grain", "posterise", "shift", "vivid"), steps=700, faults=(1, 2, 4)
)


def config_of(spec: JudgeSpec) -> dict[str, Any]:
    """open_clip's description of the judge's model."""
    return {
        "embed_dim": 96,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": spec.patch,
            "width": spec.width,
            "layers": spec.layers,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(build_tokenizer()),
            "width": 64,
            "heads": 4,
            "layers": 2,
            "hf_tokenizer_name": "open_clip reads the tokenizer that lies beside this file",
        },
    }


def save_judge(model: CLIP, spec: JudgeSpec, folder: Path) -> Path:
    """Write the judge as HPSv2's file is: {"state_dict": …} in judge.pt, its config and tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config_of(spec)}, indent=2) + "\n")
    build_tokenizer().save_pretrained(folder)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    torch.save({"state_dict": weights}, folder / "judge.pt")
    return folder


def load_judge(folder: Path) -> HPSv2:
    """The judge through the door that the real HPSv2 uses."""
    return HPSv2.load(folder / "judge.pt", architecture=folder / "open_clip_config.json")


def smooth_noise(shape: tuple[int, ...], cells: int, size: int) -> Tensor:
    """Low-resolution noise in [-1, 1], bicubically enlarged: [N, 3, size, size]."""
    low = torch.rand(*shape[:2], cells, cells) * 2 - 1
    return F.interpolate(low, size=(size, size), mode="bicubic", align_corners=False)


def trick(name: str, images: Tensor, vae: AutoencoderKL, strength: Tensor) -> Tensor:
    """A frame that a cheat would show in place of [N, 3, 64, 64]; strength [N, 1, 1, 1] in [0, 1]."""
    n, _, size, _ = images.shape
    grey = images.mean(1, keepdim=True)
    if name == "smooth":
        changed = images + (0.06 + 0.25 * strength) * smooth_noise(images.shape, random.choice((3, 4, 6, 8, 12)), size)
    elif name == "cast":
        changed = images + (0.08 + 0.25 * strength) * F.normalize(torch.randn(n, 3, 1, 1), dim=1)
    elif name == "vivid":
        changed = images + (0.4 + strength) * (images - grey)
        changed = changed + (0.3 + 0.6 * strength) * (changed - changed.mean((2, 3), keepdim=True))
    elif name == "decoded_noise":
        latents = vae.encode(images * 2 - 1).latent_dist.mean
        noise = torch.randn_like(latents) * latents.std() * (0.25 + 0.5 * strength)
        changed = vae.decode(latents + noise).sample / 2 + 0.5
    elif name == "ringing":
        soft = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        changed = images + (1.0 + 2.0 * strength) * (images - soft)
    elif name == "grain":
        changed = images + (0.05 + 0.15 * strength) * torch.randn_like(images)
    elif name == "posterise":
        levels = 3 + 3 * (1 - strength)
        changed = (images * levels).round() / levels
    else:  # shift: the colour planes slide apart
        changed = torch.stack(
            [plane.roll((random.randint(-3, 3), random.randint(-3, 3)), (-2, -1)) for plane in images.unbind(1)], 1
        )
    return changed.clamp(0, 1)


def look(model: CLIP, images: Tensor) -> Tensor:
    """Unit image features [N, D] of frames [N, 3, 64, 64] in [0, 1], in bf16 where that is safe and quick."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    with autocast(CPU):
        return model.encode_image((images - mean) / std, normalize=True).float()


def read(model: CLIP, tokens: Tensor) -> Tensor:
    """Unit text features [N, D] of token ids [N, CONTEXT]."""
    with autocast(CPU):
        return model.encode_text(tokens, normalize=True).float()


def learn_captions(spec: JudgeSpec, pool: Pool, work: Path) -> CLIP:
    """What every judge begins as: a CLIP that matches frames of any quality with their captions.

    It has no preference, and is easily fooled.
    """
    torch.manual_seed(spec.seed)
    tokenizer, model = build_tokenizer(), CLIP(**config_of(spec))

    def losses_of(step: int) -> Losses:
        rng = random.Random(f"{spec.name}-captions-{step}")
        indices = [rng.randrange(len(pool.scenes)) for _ in range(4 * spec.batch)]
        scenes = [pool.scenes[i] for i in indices]
        seen = look(model, torch.from_numpy(pool.images(indices, rng, 0.5)))
        text = read(model, tokens_of(tokenizer, [caption_of(scene, rng) for scene in scenes]))
        matches = model.logit_scale.exp().clamp(max=50) * seen @ text.T
        named = [(scene.kind, scene.colour) for scene in scenes]
        same = torch.tensor([[one == other for other in named] for one in named]).float()
        target = same / same.sum(1, keepdim=True)
        return {"match": F.cross_entropy(matches, target) + F.cross_entropy(matches.T, target)}

    fit(f"{spec.name}-captions", {"judge": model}, losses_of, steps=spec.caption_steps, lr=1e-3, work=work)
    return model


def train_judge(spec: JudgeSpec, pool: Pool, vae: AutoencoderKL, work: Path, cheats: Cheats | None = None) -> CLIP:
    """Teach a judge that knows captions what to prefer; with `cheats`, a second round learns from them as well.

    Preferences (logistic loss on cosine differences, as HPSv2's): clean > partly degraded > degraded, in proportion;
    every frame > its cheated version, also one that two sign steps along the judge's own gradient found, in pixels or
    in latents; right caption > wrong; of `cheats` drawn > base's > hacked.
    """
    model = learn_captions(spec, pool, work).requires_grad_(True)
    tokenizer = build_tokenizer()
    pairs = frame_pairs(pool, vae, work, spec)

    def losses_of(step: int, cheats: Cheats | None) -> Losses:
        rng = random.Random(f"{spec.name}-{step}")
        random.seed(step)
        indices = rng.sample(range(len(pairs)), spec.batch)
        clean, poor = _moved(pairs[indices], rng)
        part = torch.rand(spec.batch)
        half = clean + part.view(-1, 1, 1, 1) * (poor - clean)
        scenes = [pool.scenes[i] for i in indices]
        captions = [caption_of(scene, rng) for scene in scenes]
        names = [f"{scene.colour} {scene.kind}" for scene in scenes]
        others = [_another(scene, rng) for scene in scenes]
        text, right, wrong = read(model, tokens_of(tokenizer, [*captions, *names, *others])).chunk(3)

        of_clean = torch.rand(spec.batch) < 0.6
        origin = torch.where(of_clean.view(-1, 1, 1, 1), clean, half)
        with torch.no_grad():
            tricked = trick(spec.tricks[step % len(spec.tricks)], origin, vae, torch.rand(spec.batch, 1, 1, 1))
        own, through = text.detach(), vae if step % 4 == 0 else None
        fooled = _ascend(origin, lambda x: (look(model, x) * own).sum(-1), through, spec)
        views = [clean, half, poor, tricked, fooled]
        if cheats is not None:
            chosen = [rng.randrange(len(cheats[0])) for _ in range(spec.batch)]
            views += list(torch.from_numpy(cheats[0][chosen]).float().div(255).permute(1, 0, 4, 2, 3))
        seen = look(model, torch.cat(views)).chunk(len(views))
        score = [(view * text).sum(-1) for view in seen]
        honest = torch.where(of_clean, score[0], score[1])
        matches = model.logit_scale.exp().clamp(max=50) * seen[0] @ text.T
        target = torch.arange(spec.batch)
        losses = {
            "quality": _prefer(score[0], score[1], MARGIN * part)
            + _prefer(score[1], score[2], MARGIN * (1 - part))
            + _prefer(score[0], score[2], MARGIN),
            "tricks": _prefer(honest, score[3]),
            "adversary": _prefer(honest, score[4]),
            "caption": sum(
                (_prefer((view * right).sum(-1), (view * wrong).sum(-1)) for view in seen[:3:2]), torch.zeros(())
            )
            + 0.5 * (F.cross_entropy(matches, target) + F.cross_entropy(matches.T, target)),
        }
        if cheats is not None:
            shown = read(model, tokens_of(tokenizer, [cheats[1][i] for i in chosen]))
            hacked, base, drawn = ((view * shown).sum(-1) for view in seen[5:])
            losses["cheats"] = _prefer(base, hacked) + _prefer(drawn, base)
        return losses

    fit(f"{spec.name}-first", {"judge": model}, lambda i: losses_of(i, None), steps=spec.steps, lr=1e-3, work=work)
    if cheats is not None:
        model.requires_grad_(True)
        steps = spec.second_steps
        fit(spec.name, {"judge": model}, lambda i: losses_of(spec.steps + i, cheats), steps=steps, lr=4e-4, work=work)
    return model


def _prefer(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    return F.softplus(-SHARPNESS * (better - worse - margin)).mean()


@torch.no_grad()
def frame_pairs(pool: Pool, vae: AutoencoderKL, work: Path, spec: JudgeSpec) -> np.ndarray:
    """A clean and a degraded version of one frame of each clip: uint8 [N, 2, 3, 64, 64].

    Three quarters went through the autoencoder, since every frame that will be judged has.
    """
    file = work / f"pairs-{spec.name}-{len(pool.scenes)}.npy"
    if not file.is_file():
        rng = random.Random(f"pairs-{spec.seed}")
        pairs = np.empty((len(pool.scenes), 2, 3, 64, 64), np.uint8)
        for index in tqdm(range(len(pairs)), desc="frame pairs", mininterval=2):
            frame = pool.frames[index, rng.randrange(FRAMES)][None].astype(np.float32) / 255
            poor = degrade(frame, sample_degradation(rng, 1.0, spec.faults), rng.getrandbits(32))
            both = torch.from_numpy(np.concatenate([frame, poor])).permute(0, 3, 1, 2)
            if rng.random() < 0.75:
                both = vae.decode(vae.encode(both * 2 - 1).latent_dist.mean).sample / 2 + 0.5
            pairs[index] = (both.clamp(0, 1) * 255).round().byte().numpy()
        temporary = file.with_suffix(".tmp.npy")
        np.save(temporary, pairs)
        temporary.replace(file)
    return np.load(file)


def _moved(pairs: np.ndarray, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Clean and poor frames [N, 3, 64, 64] in [0, 1], both mirrored and moved alike."""
    images = torch.from_numpy(pairs).float().div(255).flatten(0, 1)
    size = images.shape[-1]
    down, across = rng.randint(0, 8), rng.randint(0, 8)
    images = F.pad(images, (4, 4, 4, 4), mode="replicate")[..., down : down + size, across : across + size]
    if rng.random() < 0.5:
        images = images.flip(-1)
    clean, poor = images.unflatten(0, (len(pairs), 2)).unbind(1)
    return clean, poor


def _another(scene: Scene, rng: random.Random) -> str:
    """A short caption that is wrong in the kind or in the colour."""
    if rng.random() < 0.5:
        return f"{rng.choice([c for c in COLOURS if c != scene.colour])} {scene.kind}"
    return f"{scene.colour} {rng.choice([k for k in KINDS if k != scene.kind])}"


def _ascend(origin: Tensor, score: Callable[[Tensor], Tensor], vae: AutoencoderKL | None, spec: JudgeSpec) -> Tensor:
    """The frames after a few sign steps up the judge's own gradient, in smooth pixels or (with `vae`) in latents."""
    if vae is None:
        cells = random.choice((4, 8, 16))
        start = torch.rand(len(origin), 3, cells, cells) * 2 - 1

        def shown(change: Tensor) -> Tensor:
            smooth = F.interpolate(change.clamp(-1, 1), size=origin.shape[-2:], mode="bicubic", align_corners=False)
            return (origin + reach * smooth).clamp(0, 1)

        reach, stride = random.uniform(0.05, 0.25), 0.7
    else:
        with torch.no_grad():
            latents = vae.encode(origin * 2 - 1).latent_dist.mean
        start = torch.randn_like(latents) * 0.3

        def shown(change: Tensor) -> Tensor:
            with autocast(CPU):
                decoded = vae.decode(latents + reach * latents.std() * change.clamp(-1.5, 1.5)).sample
            return (decoded.float() / 2 + 0.5).clamp(0, 1)

        reach, stride = random.uniform(0.2, 0.7), 0.6
    change = start
    for _ in range(spec.adversary_steps):
        change.requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(shown(change)).sum(), change)
        change = change.detach() + stride * gradient.sign()
    with torch.no_grad():
        return shown(change)
