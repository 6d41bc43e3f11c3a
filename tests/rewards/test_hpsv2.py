import json
import os
import shutil
from pathlib import Path
from typing import get_args

import open_clip
import pytest
import torch
import torch.nn.functional as F

from rayvideo import sections
from rayvideo.rewards import RewardError, hpsv2, load_reward
from rayvideo.rewards.hpsv2 import HPSv2, Release, Version
from rayvideo.rewards.judge_files import sha256
from rayvideo.rewards.openclip import build
from tests import tiny
from tests.rewards.slope import check_slope

CAPTIONS = ["red cat", "a dog runs", "red cat"]


def load(folder, **options):
    return HPSv2.load(folder / "judge.pt", architecture=folder / "open_clip_config.json", **options)


@pytest.fixture(scope="module")
def judge(tiny_judge):
    return load(tiny_judge)


@pytest.fixture
def folder(tiny_judge, tmp_path):
    """A copy of the tiny judge that a test may spoil."""
    return shutil.copytree(tiny_judge, tmp_path / "judge")


def test_the_score_is_open_clips_raw_cosine(judge, tiny_judge):
    frames = torch.rand(3, 3, 32, 32)
    model = open_clip.create_model(f"local-dir:{tiny_judge}", load_weights=False).eval()
    model.load_state_dict(torch.load(tiny_judge / "judge.pt", weights_only=True)["state_dict"])
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_judge}")(CAPTIONS)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        image, text, _ = model((frames - mean) / std, tokens)
    torch.testing.assert_close(judge.score(frames, CAPTIONS), (image * text).sum(-1), atol=1e-6, rtol=1e-5)


def test_the_gradient_is_the_scores_slope(judge):
    check_slope(judge, CAPTIONS[:2], size=64, reach=0.05)


def test_a_caption_meets_the_text_tower_once_and_alone(tiny_judge):
    judge = load(tiny_judge)
    seen = []
    judge.model.ln_final.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    frames = torch.rand(3, 3, 32, 32)
    first = judge.score(frames, CAPTIONS)
    assert torch.equal(judge.score(frames, CAPTIONS), first)
    judge.score(frames[:1], ["new"])
    assert seen == [1, 1, 1]


def test_more_captions_than_the_cache_holds_are_all_scored(tiny_judge, monkeypatch):
    judge = load(tiny_judge)
    frames = torch.rand(1, 3, 32, 32).expand(3, -1, -1, -1)
    expected = judge.score(frames, ["a", "b", "c"])
    monkeypatch.setattr("rayvideo.rewards.towers.CACHED_CAPTIONS", 1)
    fresh = load(tiny_judge)
    for _ in range(2):
        torch.testing.assert_close(fresh.score(frames, ["a", "b", "c"]), expected)


def test_half_precision_stays_near_and_returns_fp32(judge, tiny_judge):
    frames = torch.rand(3, 3, 64, 64, requires_grad=True)
    exact = judge.score(frames, CAPTIONS)
    for precision in ("bf16", "fp16"):
        half = load_reward(
            sections.Judge(
                name="half",
                checkpoint=str(tiny_judge / "judge.pt"),
                architecture=str(tiny_judge / "open_clip_config.json"),
                dtype=precision,
            )
        )
        score = half.score(frames, CAPTIONS)
        torch.testing.assert_close(score, exact, atol=0.01, rtol=0)
        (gradient,) = torch.autograd.grad(score.sum(), frames)
        assert score.dtype == gradient.dtype == torch.float32


def test_the_resize_is_part_of_the_score(tiny_judge):
    frames = torch.rand(1, 3, 64, 64)
    scores = [load(tiny_judge, resize=mode).score(frames, ["cat"]) for mode in ("bilinear", "bicubic")]
    assert not torch.allclose(*scores)


def test_the_preprocessing_of_the_config_file_is_used(folder, judge):
    path = folder / "open_clip_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}})
    )
    frames = torch.rand(1, 3, 32, 32)
    plain = load(folder).model.encode_image(frames)
    expected = F.normalize(plain, dim=-1) @ judge.caption_features(["cat"])[0]
    torch.testing.assert_close(load(folder).score(frames, ["cat"]), expected)


def test_hpsv2s_own_architecture_is_built_by_name():
    with torch.device("meta"):
        model, tokenizer = build("ViT-H-14")
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
    assert model.visual.image_size == (224, 224)
    tokens = tokenizer(["a red cat"])
    assert tokens.shape == (1, 77)
    assert tokens[0, -1] == 0


@pytest.mark.parametrize("prompts", [["cat"], ["cat"] * 3, "ab"])
def test_each_frame_needs_its_own_caption(judge, prompts):
    with pytest.raises(RewardError, match="2 frames need 2 captions"):
        judge.score(torch.rand(2, 3, 32, 32), prompts)


@pytest.mark.parametrize(
    "frames", [torch.rand(3, 32, 32), torch.rand(1, 32, 32, 3), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_frames_of_another_kind_are_refused(judge, frames):
    with pytest.raises(RewardError, match="frames must be floats"):
        judge.score(frames, ["cat"])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(folder):
    torch.save({"state_dict": {}, "extra": Bomb(folder / "exploded")}, folder / "judge.pt")
    with pytest.raises(RewardError, match=r"judge\.pt .* holds more than tensors; nothing of it was run"):
        load(folder)
    assert not (folder / "exploded").exists()


def test_a_truncated_checkpoint_is_refused(folder):
    path = folder / "judge.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RewardError, match=r"checkpoint .*judge\.pt can't be read; is it complete"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_refused(folder, content):
    (folder / "judge.pt").write_bytes(content)
    with pytest.raises(RewardError, match=r"judge\.pt"):
        load(folder)


def test_a_missing_checkpoint_is_named(folder):
    (folder / "judge.pt").unlink()
    with pytest.raises(RewardError, match=r"judge\.pt' is not a file"):
        load(folder)
    with pytest.raises(RewardError, match="checkpoint is not set"):
        HPSv2.load(None)


def test_a_bare_state_dict_is_as_good_as_hpsv2s_layout(folder, judge):
    weights = torch.load(folder / "judge.pt", weights_only=True)["state_dict"]
    torch.save(weights, folder / "judge.pt")
    frames = torch.rand(1, 3, 32, 32)
    assert torch.equal(load(folder).score(frames, ["cat"]), judge.score(frames, ["cat"]))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_every_tensor_must_find_its_place(folder, change):
    weights = torch.load(folder / "judge.pt", weights_only=True)["state_dict"]
    if change == "missing":
        del weights["visual.proj"]
    elif change == "unknown":
        weights["visual.extra"] = torch.zeros(1)
    else:
        weights["visual.proj"] = weights["visual.proj"][:, :-1]
    torch.save({"state_dict": weights}, folder / "judge.pt")
    with pytest.raises(RewardError, match=r"does not fit architecture.*: 1 tensors .*'visual\.(proj|extra)'"):
        load(folder)


@pytest.mark.parametrize("architecture", ["ViT-H-41", "nowhere.json"])
def test_an_unknown_architecture_is_named(tiny_judge, architecture):
    with pytest.raises(RewardError, match=architecture):
        HPSv2.load(tiny_judge / "judge.pt", architecture=architecture)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_cfg": {"embed_dim": 3}}'])
def test_a_broken_config_file_is_named(folder, content):
    (folder / "open_clip_config.json").write_text(content)
    with pytest.raises(RewardError, match="is not an open_clip config file"):
        load(folder)


def test_a_tokenizer_that_is_too_large_for_the_text_tower_is_refused(folder):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    path.write_text(json.dumps(config))
    with pytest.raises(RewardError, match="tokenizer has 49408 tokens, its text tower 190"):
        load(folder)


@pytest.fixture
def releases(folder, monkeypatch):
    """judge.pt as v2.0, and a v2.1 of the same size in a hub cache, of which this machine needs no network."""
    commit = "0" * 40
    repository = folder / "hub" / "models--xswu--HPSv2"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    newer = snapshot / "HPS_v2.1_compressed.pt"
    shutil.copy(tiny.save_judge(folder / "newer", seed=7) / "judge.pt", newer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files: dict[Version, Path] = {"2.0": folder / "judge.pt", "2.1": newer}
    monkeypatch.setattr(
        hpsv2,
        "RELEASES",
        [Release(f.name, version, f.stat().st_size, sha256(f)) for version, f in files.items()],
    )
    return files


def test_a_version_is_loaded_from_its_file_or_from_the_hub(releases, folder):
    frames = torch.rand(1, 3, 32, 32)
    config = folder / "open_clip_config.json"
    plain = {v: HPSv2.load(file, architecture=config).score(frames, ["cat"]) for v, file in releases.items()}
    assert plain["2.0"] != plain["2.1"]
    assert HPSv2.load(releases["2.0"], architecture=config, version="2.0").score(frames, ["cat"]) == plain["2.0"]
    assert HPSv2.load("xswu/HPSv2", architecture=config, version="2.1").score(frames, ["cat"]) == plain["2.1"]


def test_one_version_given_as_the_other_is_refused_by_its_content(releases):
    sizes = {file.stat().st_size for file in releases.values()}
    assert len(sizes) == 1
    given: Version
    for given, real in zip(get_args(Version), reversed(get_args(Version)), strict=True):
        with pytest.raises(RewardError, match=f"is not HPSv2 {given}"):
            HPSv2.load(releases[real], version=given)


@pytest.mark.parametrize(("given", "real"), [("2.0", "2.1"), ("2.1", "2.0")])
def test_one_version_given_as_the_other_is_refused_by_the_published_size(tmp_path, given, real):
    published = next(release for release in hpsv2.RELEASES if release.version == real)
    file = tmp_path / "HPS.pt"
    file.touch()
    os.truncate(file, published.size)  # sparse: takes no space
    with pytest.raises(RewardError, match=f"is not HPSv2 {given}: by its size .* it is HPSv2 {real}, {published.file}"):
        HPSv2.check(file, version=given)
    HPSv2.check(file, version=real)
    HPSv2.check(file)


def test_a_file_of_ones_own_is_of_no_version(tiny_judge):
    with pytest.raises(RewardError, match="none of the authors' files.*leave 'version' out"):
        load(tiny_judge, version="2.0")


@pytest.mark.parametrize(
    ("checkpoint", "version", "message"),
    [
        ("xswu/HPSv2", None, "options.version is not set; xswu/HPSv2 has several: '2.0', '2.1'"),
        ("xswu/HPSv2", 2.0, "options.version 2.0 is not allowed; HPSv2 has '2.0', '2.1'"),
        ("xswu/HPSv2", "2.0", "judge.pt can't be had from hub id xswu/HPSv2"),
        ("xswu/HPSv3", None, "'xswu/HPSv3' is not a file"),
    ],
)
def test_a_hub_id_needs_a_version_that_is_there(releases, checkpoint, version, message):
    with pytest.raises(RewardError, match=message):
        HPSv2.load(checkpoint, version=version)
