"""What diffusers' layers of Wan's transformer are called in Wan's own code, and so in ComfyUI."""

from __future__ import annotations

import re

from rayvideo.models.base import ModelError

ATTENTION = {"attn1": "self_attn", "attn2": "cross_attn"}
PROJECTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
FEED_FORWARD = {"net.0.proj": "0", "net.2": "2"}


def original_name(layer: str) -> str:
    """`blocks.3.attn1.to_out.0` is `blocks.3.self_attn.o`, `blocks.3.ffn.net.2` is `blocks.3.ffn.2`.

    Raises:
        ModelError: the layer is in no attention and no feed-forward network; others have no name here.
    """
    match = re.fullmatch(r"(blocks\.\d+)\.(?:(attn[12])\.(to_[qkv]|to_out\.0)|ffn\.(net\.0\.proj|net\.2))", layer)
    if match is None:
        raise ModelError(
            f"{layer!r} has no name in ComfyUI's Wan; model.lora.targets that have one: {', '.join(PROJECTION)}, "
            f"{', '.join(f'ffn.{name}' for name in FEED_FORWARD)}"
        )
    block, attention, projection, linear = match.groups()
    if attention is None:
        return f"{block}.ffn.{FEED_FORWARD[linear]}"
    return f"{block}.{ATTENTION[attention]}.{PROJECTION[projection]}"
