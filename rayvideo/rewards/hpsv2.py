"""HPSv2 and every judge built like it: an open_clip model whose cosine of frame and caption is the score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from rayvideo.rewards.base import Reward, RewardError
from rayvideo.weights import misfits

Tokenizer = Callable[[Sequence[str]], Tensor]
CACHED_CAPTIONS = 4096


class HPSv2(Reward):
    """Raw cosine of frame and caption, without logit scale; the released weights give about 0.25 to 0.27."""

    differentiable = True
    size: tuple[int, int]
    model: Any  # an open_clip model; the library is untyped
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Tokenizer, *, resize: Literal["bilinear", "bicubic"] = "bilinear"):
        """Wrap an open_clip model; `HPSv2.load` is the usual way in."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.resize = resize
        image_size = model.visual.image_size
        self.size = (image_size, image_size) if isinstance(image_size, int) else image_size
        preprocess = model.visual.preprocess_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocess[name]).view(3, 1, 1), persistent=False)
        self._captions: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        architecture: str | Path = "ViT-H-14",
        resize: Literal["bilinear", "bicubic"] = "bilinear",
        dtype: torch.dtype = torch.float32,
    ) -> HPSv2:
        """Load a checkpoint in HPSv2's layout, {"state_dict": …}; every tensor must find its place.

        `architecture` is an open_clip model name (HPSv2 itself is "ViT-H-14"), or the path of an open_clip config file,
        whose tokenizer lies in the same folder if its text_cfg sets `hf_tokenizer_name`. `resize` is "bilinear" without
        antialias (the release trains with it) or "bicubic" with antialias and black bars (the official scorer).

        Raises:
            RewardError: if a file is missing, truncated, holds code, or does not fit the architecture.
        """
        if checkpoint is None:
            raise RewardError("hpsv2 needs 'checkpoint': the path of a file such as HPS_v2.pt")
        weights = read_state_dict(checkpoint)
        model, tokenizer = build(architecture)
        if wrong := misfits(model.state_dict(), weights):
            raise RewardError(
                f"{checkpoint} does not fit architecture {str(architecture)!r}: {len(wrong)} tensors are missing, "
                f"unknown or of another shape, such as {wrong[0]!r}"
            )
        model.load_state_dict(weights)
        return cls(model.to(dtype), tokenizer, resize=resize)

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [N] in fp32 of frames [N, 3, H, W] in [0, 1] with their N captions; differentiable in the frames."""
        if frames.ndim != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
            raise RewardError(f"frames must be floats [N, 3, H, W], but are {frames.dtype} {list(frames.shape)}")
        if isinstance(prompts, str) or len(prompts) != len(frames):
            raise RewardError(f"{len(frames)} frames need {len(frames)} captions, but got {prompts!r}")
        dtype = next(self.model.parameters()).dtype
        pixels = (resize_frames(frames.float(), self.size, self.resize) - self.mean) / self.std
        images = F.normalize(self.model.encode_image(pixels.to(dtype)).float(), dim=-1)
        return (images * self._text_features(prompts)).sum(dim=-1)

    @torch.no_grad()
    def _text_features(self, prompts: Sequence[str]) -> Tensor:
        """Normalised text features [N, D]; each caption meets the text tower once."""
        device = self.mean.device
        new = [caption for caption in dict.fromkeys(prompts) if caption not in self._captions]
        if new:
            features = F.normalize(self.model.encode_text(self.tokenizer(new).to(device)).float(), dim=-1)
            self._captions.update(zip(new, features, strict=True))
        batch = torch.stack([self._captions[caption].to(device) for caption in prompts])
        while len(self._captions) > CACHED_CAPTIONS:
            del self._captions[next(iter(self._captions))]
        return batch


def resize_frames(frames: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Resize [N, 3, H, W] to `size` as the release ("bilinear") or as the official scorer ("bicubic") does.

    bilinear: no antialias, stretched to `size`. bicubic: antialiased, the longer side fills `size`, black bars, clamped
    to [0, 1] after each axis as PIL does; PIL also rounds to 8 bits there, which moves a pixel by up to 2/255.
    """
    height, width = frames.shape[-2:]
    if mode == "bilinear":
        return F.interpolate(frames, size, mode="bilinear", align_corners=False)
    scale = min(size[0] / height, size[1] / width)
    inner = (round(height * scale), round(width * scale))
    resized = frames
    for target in ((height, inner[1]), inner):
        resized = F.interpolate(resized, target, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return F.pad(resized, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top))


def build(architecture: str | Path) -> tuple[Any, Tokenizer]:
    """An untrained open_clip model on the CPU and its tokenizer, from a model name or a config file."""
    config, preprocess, folder = _read_config(architecture)
    text = config["text_cfg"]
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) or "hf_model_name" in text else open_clip.CLIP
    text["hf_model_pretrained"] = False
    # open_clip.create_model would announce that the weights are random; they are replaced right after.
    model = kind(**config)
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    if folder is None:
        return model, open_clip.get_tokenizer(str(architecture))
    context = text.get("context_length", 77)
    if "hf_tokenizer_name" not in text:
        tokenizer: Any = open_clip.tokenizer.SimpleTokenizer(context_length=context)
        tokens = tokenizer.vocab_size
    else:
        options = {"tokenizer_mode": text.get("tokenizer_mode"), **(text.get("tokenizer_kwargs") or {})}
        tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=context, **options)
        tokens = len(tokenizer.tokenizer)
    if tokens > text.get("vocab_size", 49408):
        raise RewardError(
            f"{str(architecture)!r}: its tokenizer has {tokens} tokens, its text tower {text['vocab_size']}; put the "
            "judge's own tokenizer beside the file and set text_cfg.hf_tokenizer_name in it"
        )
    return model, tokenizer


def _read_config(architecture: str | Path) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """(model config, preprocessing, folder of the config file or None for a built-in name)."""
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    path = Path(architecture)
    if path.suffix != ".json":
        config = open_clip.get_model_config(str(architecture))
        if config is None:
            raise RewardError(
                f"architecture {str(architecture)!r} is neither an open_clip model name nor an open_clip .json file"
            )
        return config, preprocess, None
    try:
        file = json.loads(path.read_text())
        config = file.get("model_cfg", file)
        config["text_cfg"], config["vision_cfg"], config["embed_dim"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RewardError(f"architecture {str(path)!r} is not an open_clip config file: {error!r}") from error
    return config, preprocess | file.get("preprocess_cfg", {}), path.parent


def read_state_dict(checkpoint: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint {"state_dict": …}; a file that needs code to be run is refused.

    Raises:
        RewardError: naming the file and what is wrong with it.
    """
    if not Path(checkpoint).is_file():
        raise RewardError(f"checkpoint {checkpoint} is not a file")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise RewardError(f"checkpoint {checkpoint} holds more than tensors and is not loaded: {error}") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise RewardError(f"checkpoint {checkpoint} can't be read, is it complete? {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise RewardError(f"checkpoint {checkpoint} is not in HPSv2's layout {{'state_dict': …}}: found {found}")
    return content["state_dict"]
