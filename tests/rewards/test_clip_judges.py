"""PickScore, CLIP score and the aesthetic predictor: the judges that are built on transformers' CLIP."""

import shutil

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from transformers import CLIPModel, CLIPProcessor

from rayvideo import sections
from rayvideo.rewards import RewardError, load_reward, resolve
from rayvideo.rewards.aesthetic import Aesthetic
from rayvideo.rewards.clip import CLIPScore
from rayvideo.rewards.pickscore import PickScore
from tests.rewards.slope import check_slope

CAPTIONS = ["red cat", "a dog runs, " * 20, "red cat"]  # the second is longer than the text tower
WIDTHS = [24, 1024, 128, 64, 16, 1]
LINEAR = [0, 2, 4, 6, 7]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A file with the tensor names of the published sac+logos+ava1-l14-linearMSE.pth."""
    torch.manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for layer, before, after in zip(LINEAR, WIDTHS, WIDTHS[1:], strict=False):
        tensors |= {
            f"layers.{layer}.weight": torch.randn(after, before) / before**0.5,
            f"layers.{layer}.bias": torch.randn(after),
        }
    path = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def load(tiny_clip, head):
    def load(kind, **options):
        if kind == "aesthetic":
            return Aesthetic.load(head, clip=tiny_clip, **options)
        return {"pickscore": PickScore, "clip": CLIPScore}[kind].load(tiny_clip, **options)

    return load


@pytest.fixture
def folder(tiny_clip, tmp_path):
    """A copy of the tiny CLIP that a test may spoil."""
    return shutil.copytree(tiny_clip, tmp_path / "clip")


def library_scores(folder, kind, head, pixels, captions):
    """The scores of 8-bit pictures as the published examples compute them, with transformers' processor."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pictures = processor.image_processor([to_pil_image(picture) for picture in pixels], return_tensors="pt")
    texts = processor.tokenizer(captions, padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        output = model(**pictures, **texts)
        if kind == "pickscore":
            return output.logits_per_image.diagonal()
        if kind == "clip":
            return output.logits_per_image.diagonal() / model.logit_scale.exp()
        rating = output.image_embeds
        tensors = torch.load(head, weights_only=True)
        for layer in LINEAR:
            rating = rating @ tensors[f"layers.{layer}.weight"].T + tensors[f"layers.{layer}.bias"]
        return rating[:, 0]


KINDS = ["pickscore", "clip", "aesthetic"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_librarys(load, tiny_clip, head, kind):
    pixels = (torch.rand(3, 3, 32, 32) * 255).byte()  # the network's own size: nothing is resized, nothing rounded
    expected = library_scores(tiny_clip, kind, head, pixels, CAPTIONS)
    for resize in ("bilinear", "bicubic"):
        scores = load(kind, resize=resize).score(pixels / 255, CAPTIONS)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert expected.unique().numel() == 3


@pytest.mark.parametrize("kind", KINDS)
def test_bicubic_stays_near_the_librarys_processor(load, tiny_clip, head, kind):
    pixels = (torch.rand(3, 3, 50, 70) * 255).byte()
    expected = library_scores(tiny_clip, kind, head, pixels, CAPTIONS)
    near, far = ((load(kind, resize=r).score(pixels / 255, CAPTIONS) - expected).abs() for r in ("bicubic", "bilinear"))
    assert near.max() < 0.1 * far.max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_scores_slope(load, kind):
    check_slope(load(kind), CAPTIONS[:2], size=48, reach=0.02)


@pytest.mark.parametrize("kind", ["pickscore", "clip"])
def test_a_caption_meets_the_text_tower_once_and_alone(load, kind):
    judge = load(kind)
    seen = []
    judge.model.text_projection.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    frames = torch.rand(3, 3, 32, 32)
    first = judge.score(frames, CAPTIONS)
    assert torch.equal(judge.score(frames, CAPTIONS), first)
    assert seen == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near_and_returns_fp32(load, kind):
    frames = torch.rand(3, 3, 48, 48, requires_grad=True)
    score = load(kind, dtype=torch.bfloat16).score(frames, CAPTIONS)
    torch.testing.assert_close(score, load(kind).score(frames, CAPTIONS), atol=0.02, rtol=0.1)
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert score.dtype == gradient.dtype == torch.float32


def test_the_recipe_names_them(tiny_clip, head):
    for judge in (
        sections.Judge(name="pick", type="pickscore", checkpoint=str(tiny_clip)),
        sections.Judge(name="text", type="clip", checkpoint=str(tiny_clip), resize="bicubic"),
        sections.Judge(name="look", type="aesthetic", checkpoint=str(head), options={"clip": str(tiny_clip)}),
    ):
        reward = load_reward(judge)
        assert type(reward) is resolve(judge.type)
        assert reward.score(torch.rand(2, 3, 32, 32), ["a", "b"]).shape == (2,)


def test_tokenizer_and_preprocessing_may_lie_elsewhere(folder, tiny_clip):
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    frames = torch.rand(1, 3, 32, 32)
    elsewhere = CLIPScore.load(folder, processor=tiny_clip)
    assert torch.equal(elsewhere.score(frames, ["cat"]), CLIPScore.load(tiny_clip).score(frames, ["cat"]))
    with pytest.raises(RewardError, match="can't be loaded"):
        CLIPScore.load(folder)


def test_a_truncated_model_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RewardError, match=r"clip: weights can't be loaded"):
        CLIPScore.load(folder)


def test_a_tensor_that_is_missing_is_not_made_up(folder):
    model = CLIPModel.from_pretrained(folder)
    weights = model.state_dict()
    del weights["visual_projection.weight"]
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(RewardError, match="1 tensors of CLIPModel, such as visual_projection"):
        CLIPScore.load(folder)


@pytest.mark.parametrize("change", ['"resample": 2', '"do_center_crop": false'])
def test_a_preprocessing_that_is_not_clips_is_refused(folder, change):
    path = folder / "preprocessor_config.json"
    key = change.split(":")[0]
    text = path.read_text()
    (old,) = [line.strip().rstrip(",") for line in text.splitlines() if line.strip().startswith(key)]
    path.write_text(text.replace(old, change))
    with pytest.raises(RewardError, match="CLIP's preprocessing is bicubic and cropped"):
        CLIPScore.load(folder)


@pytest.mark.parametrize("kind", [CLIPScore, PickScore])
@pytest.mark.parametrize("checkpoint", [None, "/nowhere/at/all", "./gone/too/deep"])
def test_a_model_that_cannot_be_there_is_named(kind, checkpoint):
    for call in (kind.check, kind.load):
        with pytest.raises(RewardError, match=f"checkpoint {'is not set' if checkpoint is None else repr(checkpoint)}"):
            call(checkpoint)


def test_a_truncated_head_is_refused(head, tiny_clip, tmp_path):
    broken = tmp_path / "head.pth"
    broken.write_bytes(head.read_bytes()[:2000])
    with pytest.raises(RewardError, match=r"checkpoint .*head\.pth can't be read; is it complete"):
        Aesthetic.load(broken, clip=tiny_clip)


def test_a_head_for_other_features_is_refused(head, tiny_clip, tmp_path):
    tensors = torch.load(head, weights_only=True)
    tensors["layers.0.weight"] = torch.zeros(1024, 768)
    torch.save(tensors, tmp_path / "wide.pth")
    with pytest.raises(RewardError, match=r"no head for the features of .*: 1 tensors .* 'layers\.0\.weight'"):
        Aesthetic.load(tmp_path / "wide.pth", clip=tiny_clip)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {}, {"weight": torch.zeros(1)}, [1]])
def test_a_file_that_holds_no_head_is_refused(content, tiny_clip, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    message = r"other\.pth (is no head for the features of .*: 1[01] tensors|holds no state dict)"
    with pytest.raises(RewardError, match=message):
        Aesthetic.load(tmp_path / "other.pth", clip=tiny_clip)


def test_a_missing_head_is_named(tiny_clip):
    for checkpoint, message in ((None, "checkpoint is not set"), ("gone.pth", "'gone.pth' is not a file")):
        with pytest.raises(RewardError, match=message):
            Aesthetic.load(checkpoint, clip=tiny_clip)


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_needs_its_own_caption(load, kind):
    with pytest.raises(RewardError, match="2 frames need 2 captions"):
        load(kind).score(torch.rand(2, 3, 32, 32), ["cat"])
