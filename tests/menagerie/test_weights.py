"""The committed weights: complete, small, in the formats that others read, and as good as their card needs."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from rayvideo.menagerie import quality
from rayvideo.menagerie.build import WEIGHTS
from rayvideo.menagerie.classifier import KindClassifier
from rayvideo.menagerie.clips import scenes_for
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import KINDS, draw, evaluation_captions
from rayvideo.models import load_model
from tests.tiny import REFERENCE_SCHEDULE


def test_all_weights_together_stay_under_32_mb() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 32e6


def test_diffusers_loads_and_runs_the_pipeline() -> None:
    pipeline = DiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", torch_dtype=torch.float32)
    assert type(pipeline).__name__ == "TextToVideoSDPipeline"
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert {key: pipeline.scheduler.config[key] for key in REFERENCE_SCHEDULE} == REFERENCE_SCHEDULE
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("red cat", num_frames=16, height=64, width=64, num_inference_steps=2).frames
    assert frames.shape == (1, 16, 64, 64, 3)
    assert frames.std() > 0.02


def test_autoencoder_copies_what_it_never_saw() -> None:
    clip = torch.from_numpy(Pool.of_kinds(KINDS, 1, seed=77).clip(0)).permute(0, 3, 1, 2)[None]
    model = load_model(WEIGHTS / "pipeline", parts=("vae",))
    with torch.no_grad():
        copy = model.decode_frames(model.encode_frames(clip).sample(torch.Generator().manual_seed(0)))
    assert (copy.clamp(0, 1) - clip).abs().mean() < 0.06


def test_both_judges_prefer_clean_frames_and_right_captions_and_the_classifier_knows_the_kinds() -> None:
    pool = Pool.of_kinds(KINDS, 40, seed=78)
    clean = torch.from_numpy(np.stack([pool.clip(i)[8] for i in range(40)])).permute(0, 3, 1, 2)
    poor = torch.from_numpy(np.stack([pool.of_varied_quality(i, i, 1.0)[8] for i in range(40)])).permute(0, 3, 1, 2)
    names = [f"{scene.colour} {scene.kind}" for scene in pool.scenes]
    wrong = [f"{scene.colour} {KINDS[KINDS.index(scene.kind) - 5]}" for scene in pool.scenes]
    for name in ("judge", "held_out"):
        judge = load_judge(WEIGHTS / name)
        assert (judge.score(clean, names) > judge.score(poor, names)).float().mean() > 0.9
        assert (judge.score(clean, names) > judge.score(clean, wrong)).float().mean() > 0.8
    classifier = KindClassifier.load(str(WEIGHTS / "classifier.safetensors"))
    assert classifier.score(clean, names).mean() > 0.85


def test_clips_show_what_captions_name_and_look_as_poor_as_the_data() -> None:
    captions = [caption for several in evaluation_captions().values() for caption in several[:3]]
    clips = quality.generate(load_model(WEIGHTS / "pipeline"), captions, steps=10)
    assert quality.score(KindClassifier.load(str(WEIGHTS / "classifier.safetensors")), clips, captions).mean() > 0.5
    truth = torch.from_numpy(np.stack([draw(scene) for scene, _ in scenes_for(captions, 1, seed=0)])).movedim(-1, -3)
    judge = load_judge(WEIGHTS / "judge")
    assert (quality.score(judge, truth, captions) > quality.score(judge, clips, captions)).float().mean() > 0.8
