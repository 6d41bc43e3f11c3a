"""Our HPSv2 against the official `hpsv2` code, on random weights; `make test-hpsv2` runs this where it is installed."""

import json

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from rayvideo.rewards.hpsv2 import HPSv2

pytest.importorskip("hpsv2", reason="the official code has an environment of its own: make test-hpsv2")

from hpsv2 import img_score
from hpsv2.src.open_clip import add_model_config, create_model_and_transforms

# ViT-H-14's own kind of network, narrow, with CLIP's whole vocabulary.
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "patch_size": 14, "layers": 3, "width": 64, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
CAPTIONS = [
    "a red cat",
    "A dog runs, in the rain; it's 3 o'clock &amp; über-cold!  (4K, trending)",
    "word " * 100,
    "猫が走る 🐈",
]


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The official scorer on a file of random weights, and that file with its config."""
    config = tmp_path / "narrow.json"
    config.write_text(json.dumps(CONFIG))
    add_model_config(config)
    torch.manual_seed(0)
    # As hpsv2.img_score.initialize_model does, but for the name, and without weights from the hub.
    model, _, preprocess = create_model_and_transforms(
        "narrow", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )
    for weight in model.parameters():  # born so small that every frame and caption would look the same
        weight.data += 0.05 * torch.randn_like(weight)
    monkeypatch.setattr(img_score, "model_dict", {"model": model, "preprocess_val": preprocess})
    monkeypatch.setattr(img_score, "device", "cpu")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "judge.pt")
    for weight in model.parameters():  # the scorer has to read the file
        weight.data.zero_()
    return tmp_path / "judge.pt", config


@pytest.mark.parametrize("shape", [(56, 56), (256, 256), (256, 448), (90, 61), (20, 30)])
def test_the_score_is_the_official_one(official, shape):
    checkpoint, config = official
    pixels = (torch.rand(len(CAPTIONS), 3, *shape) * 255).byte()
    expected = torch.tensor(
        [
            float(img_score.score(to_pil_image(picture), caption, cp=str(checkpoint))[0])
            for picture, caption in zip(pixels, CAPTIONS, strict=True)
        ]
    )
    ours = HPSv2.load(checkpoint, architecture=config, resize="bicubic").score(pixels / 255, CAPTIONS)
    assert (ours - expected).abs().max() < 1e-4
    assert expected.std() > 0.01
