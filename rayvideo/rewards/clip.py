"""CLIP score: how well a frame shows its caption, by a CLIP model in transformers' format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from transformers.image_utils import PILImageResampling
from transformers.utils.logging import disable_progress_bar
from typing_extensions import Self

from rayvideo.rewards.base import RewardError
from rayvideo.rewards.pixels import Resize
from rayvideo.rewards.towers import TwoTowers

disable_progress_bar()  # one for each file that is read, in every process and in every log

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


class CLIPScore(TwoTowers):
    """Raw cosine of frame and caption; ViT-L/14 gives about 0.2 to 0.3."""

    differentiable = True
    prefers_clean: ClassVar[bool] = False  # it knows what is shown, not how well
    example: ClassVar[str] = "openai/clip-vit-large-patch14"
    model: Any  # a CLIPModel; the library is untyped

    def __init__(self, model: Any, tokenizer: Any, preprocess: dict[str, Any], *, resize: Resize = "bilinear"):
        """Wrap a transformers CLIPModel and its tokenizer; `load` is the usual way in."""
        super().__init__(**preprocess, resize=resize)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def check(cls, checkpoint: str | Path | None, *, processor: str | Path | None = None, **options: Any) -> None:
        """Refuse what is neither a folder nor may be a hub id."""
        check_model(checkpoint, cls.example)
        if processor is not None:
            check_model(processor, cls.example, "options.processor")

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        resize: Resize = "bilinear",
        dtype: torch.dtype = torch.float32,
        processor: str | Path | None = None,
    ) -> Self:
        """Load weights, tokenizer and preprocessing from a folder or a hub id.

        `processor` is where tokenizer and preprocessing are taken from, if not from `checkpoint`. `resize` is
        "bilinear" without antialias, or "bicubic" with antialias and cropped to the middle, as CLIP's processor does.

        Raises:
            RewardError: if a file is missing, truncated or holds code, or if a tensor is missing or misfits.
        """
        checkpoint = check_model(checkpoint, cls.example)
        model = load_clip(CLIPModel, checkpoint, dtype)
        tokenizer = _load(AutoTokenizer, processor or checkpoint, "tokenizer")
        if len(tokenizer) > model.config.text_config.vocab_size:
            raise RewardError(
                f"{processor or checkpoint}: the tokenizer has {len(tokenizer)} tokens, the text tower of {checkpoint} "
                f"{model.config.text_config.vocab_size}"
            )
        return cls(model, tokenizer, preprocessing(model.config.vision_config, processor or checkpoint), resize=resize)

    @classmethod
    def shapes(
        cls,
        checkpoint: str | Path | None,
        resize: Resize = "bilinear",
        dtype: torch.dtype = torch.float32,
        processor: str | Path | None = None,
    ) -> Self:
        """The model without weights; of the folder or hub id only configurations and the tokenizer are read."""
        checkpoint = check_model(checkpoint, cls.example)
        model = clip_shapes(CLIPModel, checkpoint, dtype)
        tokenizer = _load(AutoTokenizer, processor or checkpoint, "tokenizer")
        read = preprocessing(model.config.vision_config, processor or checkpoint)
        with torch.device("meta"):
            return cls(model, tokenizer, read, resize=resize)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Features [N, D] by the image tower and its projection."""
        projection = self.model.visual_projection
        return projection(self.model.vision_model(pixels.to(projection.weight.dtype)).pooler_output)

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Features [M, D] by the text tower and its projection; captions that are too long are cut."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = tokens.to(self.mean.device)
        return self.model.text_projection(self.model.text_model(tokens.input_ids, tokens.attention_mask).pooler_output)


def check_model(checkpoint: str | Path | None, example: str, option: str = "checkpoint") -> str | Path:
    """The folder or hub id of a model; refused if it is not set or can be neither."""
    if checkpoint is None:
        raise RewardError(f"{option} is not set; it is a folder or a hub id such as {example}")
    if not Path(checkpoint).is_dir() and not HUB_ID.fullmatch(str(checkpoint)):
        raise RewardError(f"{option} {str(checkpoint)!r} is neither a folder nor a hub id such as {example}")
    return checkpoint


def load_clip(kind: Any, path: str | Path, dtype: torch.dtype) -> Any:
    """A CLIP network of class `kind`; a tensor that the files lack is an error, transformers would make it up.

    Its towers and projections are in `dtype`; its logit scale is one number, and stays in fp32.
    """
    model, report = _load(kind, path, "weights", dtype=torch.float32, output_loading_info=True)
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise RewardError(f"{path}: lacks or misfits {len(absent)} tensors of {kind.__name__}, such as {absent[0]}")
    for part in model.children():
        part.to(dtype)
    return model


def clip_shapes(kind: Any, path: str | Path, dtype: torch.dtype) -> Any:
    """What `load_clip` would load, on the meta device and without weights."""
    config = _load(kind.config_class, path, "configuration")
    with torch.device("meta"):
        return kind(config).to(dtype)


def preprocessing(vision: Any, path: str | Path) -> dict[str, Any]:
    """Size, mean and standard deviation (keywords of `ImageTower`) of the tower `vision` describes.

    Raises:
        RewardError: if the preprocessing in `path` is not CLIP's: bicubic, shorter side, middle.
    """
    # Only its settings are read; Pillow's variant is the one that every installation can build.
    processor = _load(AutoImageProcessor, path, "'preprocessor_config.json'", backend="pil")
    resample, cut = processor.resample, processor.do_center_crop
    if resample != PILImageResampling.BICUBIC or not cut:
        raise RewardError(f"{path}: CLIP's preprocessing is bicubic and cropped, but resample {resample}, crop {cut}")
    return {
        "size": (vision.image_size, vision.image_size),
        "mean": processor.image_mean,
        "std": processor.image_std,
    }


def _load(kind: Any, path: str | Path, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except Exception as error:  # what the library makes of a damaged configuration may be anything
        raise RewardError(f"{path}: {what} can't be loaded: {error}") from error
