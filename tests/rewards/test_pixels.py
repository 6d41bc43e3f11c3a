import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, pad, resize, to_pil_image
from transformers import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rayvideo.rewards.pixels import resize_frames

SHAPES = [(64, 64), (48, 64), (101, 60), (20, 20), (32, 47), (32, 32)]


def test_bilinear_is_without_antialias():
    frames = torch.rand(2, 3, 64, 64)
    # A quarter of the size without antialias reads the middle 2x2 pixels of each 4x4 block and no others.
    middle = frames.unfold(2, 4, 4).unfold(3, 4, 4)[..., 1:3, 1:3].mean(dim=(-2, -1))
    torch.testing.assert_close(resize_frames(frames, (16, 16), "bilinear"), middle)


@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_is_what_hpsv2_does_to_a_tensor(shape):
    frame = torch.rand(3, *shape)
    scale = 32 / max(shape)
    inner = [round(side * scale) for side in shape]
    official = resize(frame, inner, InterpolationMode.BICUBIC)  # the package's own call, antialiased by default
    bars = [32 - side for side in reversed(inner)]
    official = pad(official, [bars[0] // 2, bars[1] // 2, bars[0] - bars[0] // 2, bars[1] - bars[1] // 2])
    torch.testing.assert_close(resize_frames(frame[None], (32, 32), "bicubic", "letterbox")[0], official)


@pytest.mark.parametrize("processor", [CLIPImageProcessor, CLIPImageProcessorPil])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_what_clips_processor_does_to_a_picture(shape, processor):
    pixels = (torch.rand(3, *shape) * 255).byte()
    official = processor(size={"shortest_edge": 32}, crop_size=32, do_normalize=False)
    image: Image.Image = to_pil_image(pixels)
    ours = resize_frames(pixels[None] / 255, (32, 32), "bicubic", "crop")[0]
    assert (ours - official(image, return_tensors="pt").pixel_values[0]).abs().max() <= 2 / 255


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("framing", ["letterbox", "crop"])
def test_gradients_reach_the_frames(mode, framing):
    frames = torch.rand(1, 3, 40, 40, dtype=torch.float64, requires_grad=True)
    resized = resize_frames(frames, (16, 16), mode, framing)
    slope = torch.rand_like(resized)
    (gradient,) = torch.autograd.grad((resized * slope).sum(), frames)
    step = 1e-3 * torch.randn_like(frames)
    rise = ((resize_frames(frames + step, (16, 16), mode, framing) - resized) * slope).sum()
    assert rise.item() == pytest.approx((gradient * step).sum().item(), rel=1e-6)
