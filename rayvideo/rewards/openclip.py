"""Untrained open_clip networks and their tokenizers, from a model name or a config file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from rayvideo.rewards.base import RewardError

Tokenizer = Callable[[Sequence[str]], Tensor]


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


def check_architecture(architecture: str | Path) -> None:
    """Refuse, without building anything, a name that open_clip does not know and a file that is no config of its."""
    _read_config(architecture)


def _read_config(architecture: str | Path) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """(model config, preprocessing, folder of the config file or None for a built-in name)."""
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    path = Path(architecture)
    if path.suffix != ".json":
        config = open_clip.get_model_config(str(architecture))
        if config is None:
            known = {name.lower(): name for name in open_clip.list_models()}
            close = [repr(known[name]) for name in difflib.get_close_matches(str(architecture).lower(), known)]
            raise RewardError(
                f"architecture {str(architecture)!r} is neither an open_clip model name nor an open_clip .json file"
                + (f"; did you mean {' or '.join(close)}?" if close else "")
            )
        return config, preprocess, None
    try:
        file = json.loads(path.read_text())
        config = file.get("model_cfg", file)
        config["text_cfg"], config["vision_cfg"], config["embed_dim"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RewardError(f"architecture {str(path)!r} is not an open_clip config file: {error!r}") from error
    return config, preprocess | file.get("preprocess_cfg", {}), path.parent
