"""Every training stage of the menagerie learns, resumes exactly and stops at bad numbers (a few tiny steps each)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayvideo.menagerie import judges
from rayvideo.menagerie.autoencoder import CHANNELS, LATENT_STD, build_autoencoder, train_autoencoder
from rayvideo.menagerie.classifier import KindClassifier, save_classifier, train_classifier
from rayvideo.menagerie.denoiser import (
    build_denoiser,
    build_scheduler,
    build_tokenizer,
    encode_pool,
    tokens_of,
    train_denoiser,
)
from rayvideo.menagerie.fit import fit
from rayvideo.menagerie.pool import Pool
from rayvideo.menagerie.world import KINDS
from rayvideo.rewards.base import RewardError


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.of_kinds(KINDS, 24, seed=5)


def test_fit_learns_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    def run(work: Path, kill_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)

        def losses_of(step: int) -> dict[str, torch.Tensor]:
            if step == kill_at:
                raise KeyboardInterrupt
            x = torch.randn(16, 3)
            return {"square": (layer(x) - x.sum(1, keepdim=True)).square().mean()}

        fit("line", {"line": layer}, losses_of, steps=120, lr=0.05, work=work, average=0.5, save_every=10)
        return layer.weight

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", kill_at=65)
    torch.testing.assert_close(run(tmp_path / "killed"), whole, rtol=0, atol=0)
    torch.testing.assert_close(whole, torch.ones(1, 3), rtol=0, atol=0.1)


TWO = """
import sys
from pathlib import Path
import torch
from rayvideo.menagerie.fit import fit

torch.manual_seed(0)
layer = torch.nn.Linear(3, 1)
drawn = []

def losses_of(draw):
    drawn.append(draw)
    x = torch.randn(8, 3)
    return {"square": (layer(x) - x.sum(1, keepdim=True)).square().mean()}

torch.distributed.init_process_group("gloo")
rank, work = torch.distributed.get_rank(), Path(sys.argv[1])
fit("line", {"line": layer}, losses_of, steps=4, lr=0.05, work=work, average=0.0)
torch.save({"weight": layer.weight.detach(), "drawn": drawn}, work / f"of-{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_fit_one_network_to_twice_the_batch(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(tmp_path / "two.py"), str(tmp_path)], check=True, timeout=600)
    first, second = (torch.load(tmp_path / f"of-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["drawn"] == [0, 2, 4, 6]
    assert second["drawn"] == [1, 3, 5, 7]
    torch.testing.assert_close(first["weight"], second["weight"], rtol=0, atol=0)

    torch.manual_seed(0)
    layer = nn.Linear(3, 1)

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        drawn = []
        for draw in (2 * step, 2 * step + 1):
            torch.manual_seed(draw)
            drawn.append(torch.randn(8, 3))
        x = torch.cat(drawn)
        return {"square": (layer(x) - x.sum(1, keepdim=True)).square().mean()}

    fit("line", {"line": layer}, losses_of, steps=4, lr=0.05, work=tmp_path / "one", average=0.0)
    torch.testing.assert_close(layer.weight, first["weight"])


def test_fit_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match=r"line: loss at step 0"):
        fit("line", {"line": layer}, lambda _: {"x": layer(torch.full((1, 1), float("nan"))).sum()},
            steps=1, lr=0.1, work=tmp_path)  # fmt: skip


def test_a_pool_is_drawn_once(tmp_path: Path) -> None:
    first = Pool.drawn(3, 1, tmp_path)
    (file,) = tmp_path.glob("*.npy")
    stamp = file.stat().st_mtime_ns
    again = Pool.drawn(3, 1, tmp_path)
    assert file.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.frames, again.frames)


def test_tokenizer_knows_its_world_and_takes_any_text() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("red elephant dancing") == ["red</w>", "elephant</w>", "dancing</w>"]
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.unk_token_id not in tokenizer("漢 é ~", add_special_tokens=False).input_ids
    assert tokens_of(tokenizer, ["a " * 100]).shape == (1, 24)


def test_autoencoder_and_denoiser_train_and_fit_together(pool: Pool, tmp_path: Path) -> None:
    vae = train_autoencoder(pool, tmp_path, crop_steps=2, steps=2)
    latents = encode_pool(vae, pool, tmp_path, seed=1)
    assert latents.shape == (24, 2, CHANNELS, 16, 8, 8)
    assert 0.5 * LATENT_STD < latents.astype(np.float32).std() < 2 * LATENT_STD
    unet, text, tokenizer = train_denoiser(latents, pool, tmp_path, frame_steps=2, clip_steps=2)
    with torch.no_grad():
        embedded = text(tokens_of(tokenizer, ["red cat"])).last_hidden_state
        noise = unet(torch.randn(1, CHANNELS, 16, 8, 8), 5, embedded).sample
    assert noise.isfinite().all()


@pytest.mark.parametrize("timestep", [951, 501, 1])
def test_an_untrained_denoiser_returns_its_input(timestep: int) -> None:
    torch.manual_seed(0)
    noisy = build_scheduler().add_noise(
        LATENT_STD * torch.randn(2, CHANNELS, 3, 8, 8), torch.randn(2, CHANNELS, 3, 8, 8), torch.tensor([timestep] * 2)
    )
    with torch.no_grad():
        predicted = build_denoiser().eval()(noisy, timestep, torch.randn(2, 5, 96)).sample
    # At t = 951 an error of 1 % of the noise is one of 30 % of the clean latents.
    assert (predicted - noisy).abs().max() < 0.03
    assert (predicted - noisy).std() < 0.01


def test_judge_trains_in_two_rounds_and_loads_like_hpsv2(pool: Pool, tmp_path: Path) -> None:
    spec = judges.JudgeSpec(
        "small", 1, 32, 1, 16, ("smooth", "decoded_noise", "shift"), steps=4, caption_steps=2, second_steps=2, batch=3
    )
    vae = build_autoencoder().requires_grad_(False)
    cheats = (np.zeros((4, 3, 64, 64, 3), np.uint8), ["red cat"] * 4)
    first = {k: v.clone() for k, v in judges.train_judge(spec, pool, vae, tmp_path).state_dict().items()}
    model = judges.train_judge(spec, pool, vae, tmp_path, cheats=cheats)
    assert any((first[name] != weight).any() for name, weight in model.state_dict().items())
    judge = judges.load_judge(judges.save_judge(model, spec, tmp_path / "judge"))
    scores = judge.score(torch.rand(2, 3, 64, 64), ["red cat", "blue dog"])
    assert scores.shape == (2,)
    assert scores.abs().max() <= 1


@pytest.mark.parametrize("name", sorted({*judges.TRAINING_JUDGE.tricks, *judges.HELD_OUT_JUDGE.tricks}))
def test_every_trick_changes_the_frame_and_stays_a_frame(name: str) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        changed = judges.trick(name, images, build_autoencoder(), torch.full((2, 1, 1, 1), 0.5))
    assert changed.shape == images.shape
    assert (changed - images).abs().mean() > 0.01
    assert 0 <= changed.min() <= changed.max() <= 1


def test_classifier_counts_right_kinds(pool: Pool, tmp_path: Path) -> None:
    save_classifier(train_classifier(pool, tmp_path, steps=1), tmp_path / "c.safetensors")
    classifier = KindClassifier.load(str(tmp_path / "c.safetensors"))
    frames = torch.rand(2, 3, 64, 64)
    found = [KINDS[i] for i in classifier.head(classifier.features(frames)).argmax(-1).tolist()]
    others = [next(kind for kind in KINDS if kind != one) for one in found]
    assert classifier.score(frames, [f"red {kind}" for kind in found]).tolist() == [1.0, 1.0]
    assert classifier.score(frames, [f"red {kind}" for kind in others]).tolist() == [0.0, 0.0]
    with pytest.raises(RewardError, match="names none of"):
        classifier.score(frames, ["red cat", "a spaceship"])
