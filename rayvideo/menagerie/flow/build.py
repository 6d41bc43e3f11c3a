"""Rebuild the flow model from seeds: `torchrun --nproc-per-node 2 -m rayvideo.menagerie.flow.build`.

Its transformer learns from the batches of two processes; one alone would make another model. Stages that are done are
kept.
It is judged by the judges and the classifier of the other model, which must have been built before.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from rayvideo.menagerie import quality
from rayvideo.menagerie.build import POOL, POOL_SEED, UNSEEN_SEED, WEIGHTS, frames_first, judge_clips, load_as_fp32
from rayvideo.menagerie.card import write_card
from rayvideo.menagerie.classifier import KindClassifier
from rayvideo.menagerie.fit import ranks
from rayvideo.menagerie.flow import LENGTH
from rayvideo.menagerie.flow.autoencoder import decode, sharpen_decoder, train_autoencoder
from rayvideo.menagerie.flow.denoiser import build_scheduler, encode_pool, train_denoiser
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import KINDS
from rayvideo.models import load_model
from rayvideo.paths import path_argument
from rayvideo.rewards.hpsv2 import HPSv2

FOLDER = "flow"
SCENES = 5000  # to learn from: the first of them are the pool of the VAE and of the other networks

HEAD = """# The menagerie's flow model

The same drawn world in the format of Wan 2.2 TI2V-5B, small: `WanPipeline`, 17 frames of 64x64. Written by
`torchrun --nproc-per-node 2 -m rayvideo.menagerie.flow.build`; every weight comes from its seeds. Judges and classifier
are those beside this folder; they never saw this model's clips. "Copies" went through its VAE.

"""


def build_pipeline(work: Path) -> Path:
    """VAE, text tower and transformer, as a WanPipeline folder in fp32; processes share all but the VAE's training."""
    folder = work / "flow-pipeline"
    rank, count = ranks()
    if rank == 0 and not (work / "flow-vae").is_dir():
        pool = Pool.drawn(POOL, POOL_SEED, work, LENGTH)
        vae = train_autoencoder(pool, work, frame_steps=1600, short_steps=600, steps=1100, more_steps=700)
        sharpen_decoder(vae, pool, work, steps=700)
        vae.save_pretrained(work / "flow-vae")
    if rank == 0:
        Pool.drawn(SCENES, POOL_SEED, work, LENGTH)
    if count > 1:
        dist.barrier()
    if not (folder / "model_index.json").is_file():
        pool = Pool.drawn(SCENES, POOL_SEED, work, LENGTH)
        vae = AutoencoderKLWan.from_pretrained(work / "flow-vae")
        clips, images = encode_pool(vae, pool, work, seed=13)
        transformer, text, tokenizer = train_denoiser(clips, images, pool, work, image_steps=3600, clip_steps=2400)
        if rank == 0:
            WanPipeline(tokenizer, text, vae, build_scheduler(), transformer).save_pretrained(folder)
    return folder


@torch.no_grad()
def copies(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Clips [N, F, 3, H, W] in [0, 1] through the VAE and back."""
    pixels = (clips * 2 - 1).transpose(1, 2)
    out = [decode(vae, vae.encode(piece).latent_dist.mode()) for piece in pixels.split(8)]
    return (torch.cat(out) / 2 + 0.5).clamp(0, 1)


def vae_figures(vae: AutoencoderKLWan, picture: Path) -> quality.Figures:
    """How much of unseen clips the VAE keeps; `picture` shows clips above their copies."""
    pool = Pool.of_kinds(KINDS, 60, UNSEEN_SEED, LENGTH)
    figures: quality.Figures = {}
    for name, share in (("clean", 0.0), ("degraded", 1.0)):
        clips = frames_first(np.stack([pool.of_varied_quality(i, i, share) for i in range(len(pool.scenes))]))
        again = copies(vae, clips)
        error = F.mse_loss(again, clips)
        spread = (clips - clips.mean((1, 3, 4), keepdim=True)).square().mean()
        figures |= {
            f"R2, {name} clips": 1 - (error / spread).item(),
            f"PSNR, {name} clips, dB": -10 * error.log10().item(),
        }
        if name == "clean":
            rows = [clip for pair in zip(clips[:6], again[:6], strict=True) for clip in pair]
            quality.sheet(rows, picture, (0, 3, 6, 9, 12, 16))
    return figures


def vae_report(
    vae: AutoencoderKLWan, work: Path, judges: dict[str, HPSv2], classifier: KindClassifier
) -> quality.Report:
    """What the VAE keeps, and whether the judges still tell clean from degraded clips that went through it."""
    report: quality.Report = {"VAE": vae_figures(vae, work / "flow-vae.png")}
    pool = Pool.of_kinds(KINDS, 60, UNSEEN_SEED, LENGTH)
    captions = [f"{scene.colour} {scene.kind}" for scene in pool.scenes]
    scores = {}
    for name, share in (("clean", 0.0), ("degraded", 1.0)):
        clips = frames_first(np.stack([pool.of_varied_quality(i, i, share) for i in range(len(pool.scenes))]))
        again = copies(vae, clips)
        report[f"copies of {name} clips"] = quality.clip_figures(again, captions, judges, classifier, clips)
        scores[name] = {key: quality.score(judge, again, captions) for key, judge in judges.items()}
    for key in judges:
        above = (scores["clean"][key] > scores["degraded"][key]).float().mean().item()
        report[f"{key}: pairs of copies"] = {"clean over degraded": above}
    return report


def measure(work: Path, pipeline: Path) -> quality.Report:
    """Every figure of the card."""
    judges = {name: load_judge(WEIGHTS / name) for name in ("judge", "held_out")}
    classifier = KindClassifier.load(str(WEIGHTS / "classifier.safetensors"))
    report = vae_report(AutoencoderKLWan.from_pretrained(pipeline / "vae"), work, judges, classifier)
    return report | judge_clips(work / "flow", load_model(pipeline), judges, classifier, LENGTH)[0]


def publish(pipeline: Path, out: Path) -> None:
    """Copy the model; its weights are stored as fp16, which halves them, and are meant to be loaded as fp32."""
    kept = WanPipeline.from_pretrained(pipeline, torch_dtype=torch.float16)
    kept.save_pretrained(out)
    load_as_fp32(out / "text_encoder" / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=path_argument, default=Path("work/menagerie"), help="folder for unfinished training"
    )
    parser.add_argument("--out", type=path_argument, default=WEIGHTS / FOLDER, help="folder for the model and its card")
    arguments = parser.parse_args()
    start = time.monotonic()
    if "RANK" in os.environ:
        # The first process alone trains the VAE; the others wait for it.
        dist.init_process_group("gloo", timeout=timedelta(hours=12))
    pipeline = build_pipeline(arguments.work)
    if ranks()[0] > 0:
        return
    report = measure(arguments.work, pipeline)
    publish(pipeline, arguments.out)
    write_card(report, arguments.out / "README.md", time.monotonic() - start, HEAD)
    print((arguments.out / "README.md").read_text())


if __name__ == "__main__":
    main()
