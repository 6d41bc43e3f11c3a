"""Captions to clips: the full denoising chain from pure noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayvideo import editing
from rayvideo.evaluation import EvaluationError
from rayvideo.models.base import VideoModel
from rayvideo.models.tiles import decode_tiles
from rayvideo.seeding import generator_for
from rayvideo.serving.judging import is_out_of_memory


@torch.no_grad()
def embed_captions(model: VideoModel, captions: Sequence[str], negative_prompt: str = "") -> dict[str, Tensor]:
    """Embedding [L, C] of every distinct caption and of the negative prompt, on the CPU; needs the text tower."""
    distinct = list(dict.fromkeys([negative_prompt, *captions]))
    return {caption: model.encode_prompts([caption])[0].cpu() for caption in distinct}


@torch.no_grad()
def generate_clips(
    model: VideoModel,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    frames: int,
    height: int,
    width: int,
    negative_prompt: str = "",
    batch_size: int = 8,
    fixed_batch: bool = False,
    tiled: bool = False,
    embeddings: Mapping[str, Tensor] | None = None,
    told: Callable[[int], None] | None = None,
) -> Tensor:
    """One clip for each pair of caption and seed: float [N, F, 3, H, W] in [0, 1] on the CPU.

    A clip depends on its caption and seed alone, not on its neighbours, their order or `batch_size` (clips per forward
    pass), because its noise comes from a generator of its own. What the size of a batch leaves are last bits, since
    kernels are chosen by it.

    Args:
        fixed_batch: Fill the last batch up with repetitions, so that all forward passes have one size and the last bits
            don't depend on how many clips there are.
        tiled: Decode clips in overlapping tiles, which takes less memory and changes pixels a little.
        steps: Steps D of the whole chain.
        guidance: Classifier-free guidance scale; 1 is the caption's prediction alone.
        negative_prompt: What guidance leads away from.
        embeddings: What `embed_captions` gave, for a model that was loaded without its text tower.
        told: Called with the number of clips that are made, after each batch.

    Raises:
        EvaluationError: memory does not suffice; the message names the option that mends it.
    """
    if len(captions) != len(seeds):
        raise ValueError(f"every clip needs a caption and a seed: got {len(captions)} captions, {len(seeds)} seeds")
    table = embed_captions(model, captions, negative_prompt) if embeddings is None else embeddings
    chain = model.schedule.chain(steps)
    shape = model.latent_shape(frames, height, width)
    decode = partial(decode_tiles, model.decode_frames, factor=height // shape[2]) if tiled else model.decode_frames
    clips = []
    for start in range(0, len(captions), batch_size):
        pairs = list(zip(captions, seeds, strict=True))[start : start + batch_size]
        wanted = len(pairs)
        if fixed_batch:
            pairs += [pairs[-1]] * (batch_size - wanted)
        chosen = [caption for caption, _ in pairs]
        generators = [generator_for(seed, "generate", caption) for caption, seed in pairs]
        latents = editing.normal((len(chosen), *shape), generators, model.device)
        prompts = torch.stack([table[caption] for caption in chosen])
        predict = model.guided(prompts, table[negative_prompt][None], guidance)
        with _enough_memory("denoising", f"lower evaluation.batch_size {batch_size}, or the clips' size"):
            latents = editing.run_chain(predict, latents, model.schedule, chain)
        mend = "lower data.frames, data.height or data.width" if tiled else "set model.tiled_decoding=true"
        with _enough_memory("decoding", mend):
            # Clip by clip: decoded frames, not latents, are what fills the memory.
            clips += [decode(one[None])[0].clamp(0, 1).float().cpu() for one in latents[:wanted]]
        if told:
            told(len(clips))
    return torch.stack(clips)


@contextmanager
def _enough_memory(doing: str, mend: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise EvaluationError(f"out of memory in {doing} generated clips; {mend} ({error})") from error


def to_pixels(clips: Tensor) -> npt.NDArray[np.uint8]:
    """Float [..., F, 3, H, W] in [0, 1] as pixels [..., F, H, W, 3] in 0..255, rounded."""
    return clips.movedim(-3, -1).mul(255).round().to(torch.uint8).numpy()


def to_frames(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels [..., F, H, W, 3] in 0..255 as float [..., F, 3, H, W] in [0, 1], as judges take them."""
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 255
