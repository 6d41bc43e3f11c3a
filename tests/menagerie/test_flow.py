"""The flow model: how it is trained, on a few scenes and steps, and what its committed weights can do."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from rayvideo.menagerie import quality
from rayvideo.menagerie.build import WEIGHTS, frames_first
from rayvideo.menagerie.classifier import KindClassifier
from rayvideo.menagerie.flow import LENGTH
from rayvideo.menagerie.flow.autoencoder import (
    _as_images,
    build_autoencoder,
    decode,
    sample_clips,
    train_autoencoder,
)
from rayvideo.menagerie.flow.build import FOLDER, copies, publish
from rayvideo.menagerie.flow.denoiser import (
    build_scheduler,
    build_text_tower,
    build_tokenizer,
    build_transformer,
    embed,
    encode_pool,
    short_text,
    shorten,
    train_denoiser,
)
from rayvideo.menagerie.judges import load_judge
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import KINDS
from rayvideo.models import load_model
from rayvideo.models.wan.family import TEXT_LENGTH

CAPTIONS = ["red cat", "A red cat is running on the grass.", ""]


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.of_kinds(KINDS, 3, seed=1, length=LENGTH)


def pixels(pool: Pool, frames: int) -> Tensor:
    """[2, 3, frames, 64, 64] in [-1, 1]"""
    return sample_clips(pool, random.Random(0), 2, frames).transpose(1, 2)


class TestAutoencoder:
    def test_an_image_goes_through_it_as_the_first_frame_of_a_clip_does(self, pool):
        vae, image = build_autoencoder(), pixels(pool, 1)
        with torch.no_grad():
            latents = vae.encode(image).latent_dist.mode()
            usual = decode(vae, latents)
            with _as_images(vae):
                torch.testing.assert_close(vae.encode(image).latent_dist.mode(), latents, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(decode(vae, latents), usual, rtol=1e-4, atol=1e-5)
            assert torch.equal(decode(vae, latents), usual)

    def test_decoding_is_diffusers_but_for_the_clamp(self, pool):
        vae = build_autoencoder()
        with torch.no_grad():
            latents = 3 * torch.randn(2, 16, 2, 8, 8)
            ours = decode(vae, latents).transpose(1, 2)
            torch.testing.assert_close(ours.clamp(-1, 1), vae.decode(latents).sample, rtol=1e-4, atol=1e-5)
            assert ours.abs().max() > 1

    def test_training_reaches_every_weight_and_measures_the_latents(self, pool, tmp_path):
        before = build_autoencoder().state_dict()
        vae = train_autoencoder(pool, tmp_path, frame_steps=1, short_steps=1, steps=1, more_steps=1)
        still = [name for name, weight in vae.state_dict().items() if torch.equal(weight, before[name])]
        assert not still
        assert len(vae.config.latents_std) == 16
        assert all(std > 0 and std != 1 for std in vae.config.latents_std)


class TestDenoiser:
    def test_a_short_text_is_the_whole_one(self):
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        text, transformer = build_text_tower(len(tokenizer)), build_transformer()
        latents, times = torch.randn(3, 16, 2, 4, 4), torch.tensor([900.0, 500.0, 20.0])
        with torch.no_grad():
            embedded, lengths = embed(text, tokenizer, CAPTIONS)
            whole = F.pad(embedded, (0, 0, 0, TEXT_LENGTH - embedded.shape[1]))
            expected = transformer(latents, times, whole).sample
            with short_text(transformer) as short:
                short.bias = shorten(lengths, embedded.shape[1])
                torch.testing.assert_close(transformer(latents, times, embedded).sample, expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(transformer(latents, times, whole).sample, expected)

    def test_the_tokenizer_knows_the_worlds_words_and_reads_others_by_letters(self):
        tokenizer = build_tokenizer()
        assert tokenizer.tokenize("A red cat is running on the grass.")[:3] == ["▁A", "▁red", "▁cat"]
        assert tokenizer.unk_token_id not in tokenizer("a griffin?").input_ids

    def test_untrained_it_returns_about_its_input(self):
        torch.manual_seed(0)
        latents = torch.randn(2, 16, 5, 8, 8)
        with torch.no_grad():
            out = build_transformer()(latents, torch.tensor([900.0, 500.0]), torch.zeros(2, 4, 96)).sample
        assert (out - latents).square().mean() < 0.1

    def test_a_whole_training_becomes_a_pipeline(self, pool, tmp_path):
        vae = build_autoencoder().eval().requires_grad_(False)
        clips, images = encode_pool(vae, pool, tmp_path, seed=1)
        assert clips.shape == (3, 2, 16, 5, 8, 8)
        assert images.shape == (3, 2, 6, 16, 8, 8)
        assert not np.array_equal(clips[:, 0], clips[:, 1])  # mirrored
        transformer, text, tokenizer = train_denoiser(clips, images, pool, tmp_path, image_steps=2, clip_steps=2)
        WanPipeline(tokenizer, text, vae, build_scheduler(), transformer).save_pretrained(tmp_path / "pipeline")
        publish(tmp_path / "pipeline", tmp_path / "published")
        model = load_model(tmp_path / "published")
        assert {weight.dtype for weight in model.denoiser.parameters()} == {torch.float32}
        clip = quality.generate(model, ["red cat"], steps=2, length=LENGTH)
        assert clip.shape == (1, LENGTH, 3, 64, 64)
        assert clip.std() > 0.02


class TestWeights:
    def test_the_vae_copies_what_it_never_saw(self):
        vae = AutoencoderKLWan.from_pretrained(WEIGHTS / FOLDER, subfolder="vae", torch_dtype=torch.float32)
        clips = frames_first(Pool.of_kinds(KINDS, 4, seed=77, length=LENGTH).frames / np.float32(255))
        error = (copies(vae, clips) - clips).square().mean()
        spread = (clips - clips.mean((1, 3, 4), keepdim=True)).square().mean()
        assert 1 - error / spread > 0.85

    def test_judges_and_classifier_serve_its_copies_too(self):
        vae = AutoencoderKLWan.from_pretrained(WEIGHTS / FOLDER, subfolder="vae", torch_dtype=torch.float32)
        pool = Pool.of_kinds(KINDS, 12, seed=79, length=LENGTH)
        captions = [f"{scene.colour} {scene.kind}" for scene in pool.scenes]
        seen = {}
        for share in (0.0, 1.0):
            clips = np.stack([pool.of_varied_quality(i, i, share) for i in range(len(pool.scenes))])
            seen[share] = copies(vae, frames_first(clips))
        classifier = KindClassifier.load(str(WEIGHTS / "classifier.safetensors"))
        assert quality.score(classifier, seen[0.0], captions).mean() > 0.75
        for name in ("judge", "held_out"):
            judge = load_judge(WEIGHTS / name)
            clean, poor = (quality.score(judge, seen[share], captions) for share in (0.0, 1.0))
            assert (clean > poor).float().mean() > 0.9


def test_clips_of_any_length_show_the_same(pool):
    sixteen = Pool.of_kinds(KINDS, 3, seed=1)
    assert sixteen.frames.shape[1] == 16
    assert pool.frames.shape[1] == LENGTH
    assert np.array_equal(pool.frames[:, 0], sixteen.frames[:, 0])
    assert np.array_equal(pool.frames[:, -1], sixteen.frames[:, -1])


def test_encoded_clips_are_kept(pool, tmp_path: Path):
    vae = build_autoencoder().eval().requires_grad_(False)
    first = encode_pool(vae, pool, tmp_path, seed=2)
    again = encode_pool(build_autoencoder().eval(), pool, tmp_path, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
