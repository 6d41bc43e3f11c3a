"""Rebuild the menagerie from seeds: `python -m rayvideo.menagerie.build`. Stages that are done are not done again."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, TextToVideoSDPipeline
from torch import Tensor

from rayvideo.menagerie import quality
from rayvideo.menagerie.ascent import ascend
from rayvideo.menagerie.autoencoder import train_autoencoder
from rayvideo.menagerie.card import write_card
from rayvideo.menagerie.classifier import KindClassifier, save_classifier, train_classifier
from rayvideo.menagerie.clips import scenes_for
from rayvideo.menagerie.denoiser import build_scheduler, encode_pool, train_denoiser
from rayvideo.menagerie.judges import (
    HELD_OUT_JUDGE,
    TRAINING_JUDGE,
    Cheats,
    JudgeSpec,
    learn_captions,
    load_judge,
    save_judge,
    train_judge,
)
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import (
    FRAMES,
    IN_DOMAIN,
    KINDS,
    caption_of,
    degrade,
    draw,
    evaluation_captions,
    sample_degradation,
    sample_scene,
)
from rayvideo.models import VideoModel, load_model
from rayvideo.paths import path_argument
from rayvideo.rewards.hpsv2 import HPSv2

WEIGHTS = Path(__file__).parent / "weights"
POOL, POOL_SEED, UNSEEN_SEED = 3000, 7, 8


def build_pipeline(work: Path) -> Path:
    """Autoencoder, text tower and denoiser, as a TextToVideoSDPipeline folder in fp32."""
    folder = work / "pipeline"
    if not (folder / "model_index.json").is_file():
        pool = Pool.drawn(POOL, POOL_SEED, work)
        if not (work / "vae").is_dir():
            train_autoencoder(pool, work, crop_steps=3500, steps=1600).save_pretrained(work / "vae")
        vae = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last)
        latents = encode_pool(vae, pool, work, seed=3)
        unet, text, tokenizer = train_denoiser(latents, pool, work, frame_steps=3500, clip_steps=3000)
        vae = vae.to(memory_format=torch.contiguous_format)
        TextToVideoSDPipeline(vae, text, tokenizer, unet, build_scheduler()).save_pretrained(folder)
    return folder


def build_classifier(work: Path) -> KindClassifier:
    """The kind classifier, which no judge and no model learns from."""
    file = work / "classifier.safetensors"
    if not file.is_file():
        save_classifier(train_classifier(Pool.drawn(POOL, POOL_SEED, work), work, steps=500), file)
    return KindClassifier.load(str(file))


def build_judge(spec: JudgeSpec, pipeline: Path, work: Path) -> HPSv2:
    """A judge; its second round, if it has one, also learns from clips of a hacked run."""
    final = work / spec.name
    if not (final / "judge.pt").is_file():
        pool = Pool.drawn(POOL, POOL_SEED, work)
        vae = AutoencoderKL.from_pretrained(work / "vae").requires_grad_(False)
        cheats = hacked_frames(pipeline, spec, pool, work) if spec.second_steps else None
        save_judge(train_judge(spec, pool, vae, work, cheats), spec, final)
    return load_judge(final)


def hacked_frames(pipeline: Path, spec: JudgeSpec, pool: Pool, work: Path) -> Cheats:
    """What a run makes of captions that was hacked on purpose, what the base makes of them, and the drawn truth.

    Judges that know preferences resist so well that a run against them is no bad example. One that only knows captions
    is pleased with what nobody wants to look at.
    """
    file = work / f"{spec.name}-cheats.npy"
    rng = random.Random(spec.seed)
    scenes = [sample_scene(rng) for _ in range(24)]
    captions = [caption_of(scene, rng) for scene in scenes]
    if not file.is_file():
        clips, names = training_clips(32, spec.seed)
        model = load_model(pipeline)
        base = quality.generate(model, captions, steps=10)
        truth = frames_first(np.stack([draw(scene) for scene in scenes]))
        chance = torch.Generator().manual_seed(spec.seed)
        with torch.no_grad():
            copies = [model.decode_frames(model.encode_frames(clip[None]).sample(chance))[0] for clip in truth]
        naive = load_judge(save_judge(learn_captions(spec, pool, work), spec, work / f"{spec.name}-naive"))
        tuned = ascend(pipeline, naive, clips, names, steps=60, lr=3e-3)
        hacked = quality.generate(tuned, captions, steps=10)
        quality.sheet(list(hacked[:10]), work / f"{spec.name}-hacked.png")
        rows = torch.stack([hacked, base, torch.stack(copies).clamp(0, 1)], 2)[:, ::3]
        np.save(file, (rows.flatten(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy())
    frames = np.load(file)
    return frames, [caption for caption in captions for _ in range(len(frames) // len(captions))]


def training_clips(count: int, seed: int, length: int = FRAMES, degraded: float = 0.8) -> tuple[Tensor, list[str]]:
    """Clips of the in-domain kinds, a share of them degraded: [N, length, 3, 64, 64], and their captions."""
    pool = Pool.of_kinds(IN_DOMAIN, count, seed, length)
    rng = random.Random(seed)
    clips = np.stack([pool.of_varied_quality(i, seed * 1_000_003 + i, degraded) for i in range(count)])
    return frames_first(clips), [caption_of(scene, rng) for scene in pool.scenes]


def drawn(captions: Sequence[str], each: int, seed: int, length: int = FRAMES) -> Tensor:
    """`each` clean clips of every caption: [N, length, 3, 64, 64]."""
    return frames_first(np.stack([draw(scene, length) for scene, _ in scenes_for(captions, each, seed)]))


def frames_first(clips: np.ndarray) -> Tensor:
    """[…, H, W, 3] -> […, 3, H, W]"""
    return torch.from_numpy(clips).movedim(-1, -3)


def judge_clips(
    work: Path, model: VideoModel, judges: dict[str, HPSv2], classifier: KindClassifier, length: int = FRAMES
) -> tuple[quality.Report, dict[str, Tensor]]:
    """Figures of drawn clips, clean and degraded, and of the model's for each set of captions; and these clips."""
    report: quality.Report = {}
    sets = evaluation_captions()
    everything = [caption for captions in sets.values() for caption in captions]
    clean = drawn(everything, 1, UNSEEN_SEED, length)
    others = drawn(everything, 2, UNSEEN_SEED + 1, length)
    poor = np.stack(
        [degrade(c, sample_degradation(random.Random(i), 1.0), i) for i, c in enumerate(clean.movedim(-3, -1).numpy())]
    )
    report["clean clips"] = quality.clip_figures(clean, everything, judges, classifier, others)
    report["degraded clips"] = quality.clip_figures(frames_first(poor), everything, judges, classifier, others)
    base = {}
    for name, captions in sets.items():
        base[name] = quality.generate(model, captions, length=length)
        truth = drawn(captions, 2, 3, length)
        report[f"base, {name}"] = quality.clip_figures(base[name], captions, judges, classifier, truth)
        quality.sheet(list(base[name][:10]), work / f"base-{name}.png")
    return report, base


def measure(work: Path, pipeline: Path, judges: dict[str, HPSv2], classifier: KindClassifier) -> quality.Report:
    """Every figure of the card."""
    unseen = Pool.of_kinds(KINDS, 200, UNSEEN_SEED)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    report: quality.Report = {"autoencoder": quality.autoencoder_figures(vae, unseen, work / "autoencoder.png")}
    clips_report, base = judge_clips(work, load_model(pipeline), judges, classifier)
    report |= clips_report
    for name, judge in judges.items():
        report[f"{name}: pairs"] = quality.judge_figures(judge, unseen, vae)
    captions = evaluation_captions()["in_domain"]
    own, other = judges["judge"], judges["held_out"]
    report["smooth perturbations"] = quality.perturbation_gain(own, other, base["in_domain"], captions)
    clips, training_names = training_clips(32, 99)
    tuned = quality.generate(ascend(pipeline, own, clips, training_names, steps=60, lr=1e-3), captions)
    report["greedy run (lr 1e-3, 60 steps), in_domain"] = quality.clip_figures(
        tuned, captions, judges, classifier, drawn(captions, 2, 3)
    )
    quality.sheet(list(tuned[:10]), work / "greedy-in_domain.png")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=path_argument, default=Path("work/menagerie"), help="folder for unfinished training"
    )
    parser.add_argument("--out", type=path_argument, default=WEIGHTS, help="folder for the weights and the card")
    arguments = parser.parse_args()
    start = time.monotonic()
    pipeline = build_pipeline(arguments.work)
    classifier = build_classifier(arguments.work)
    judges = {spec.name: build_judge(spec, pipeline, arguments.work) for spec in (TRAINING_JUDGE, HELD_OUT_JUDGE)}
    report = measure(arguments.work, pipeline, judges, classifier)
    publish(arguments.work, arguments.out)
    write_card(report, arguments.out / "README.md", time.monotonic() - start)
    print((arguments.out / "README.md").read_text())


def publish(work: Path, out: Path) -> None:
    """Copy the finished parts; the pipeline's weights are stored as fp16, which halves them."""
    pipeline = TextToVideoSDPipeline.from_pretrained(work / "pipeline", torch_dtype=torch.float16)
    pipeline.save_pretrained(out / "pipeline")
    load_as_fp32(out / "pipeline" / "text_encoder" / "config.json")
    for spec in (TRAINING_JUDGE, HELD_OUT_JUDGE):
        shutil.copytree(work / spec.name, out / spec.name, dirs_exist_ok=True)
    shutil.copy(work / "classifier.safetensors", out / "classifier.safetensors")


def load_as_fp32(config: Path) -> None:
    """Have transformers load the weights beside this file as fp32, as diffusers does with the other parts."""
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    main()
