"""A handful of the recipe's clips: frames for the judges, latents for a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from rayvideo.data.manifest import Entry, read_captioned
from rayvideo.data.prepared import open_prepared
from rayvideo.data.table import DataError, LatentTable, Place, Rejected
from rayvideo.data.tasks import tensor_array
from rayvideo.data.video import ClipError, read_clip
from rayvideo.doctor.thresholds import CLIPS, FRAMES_PER_CLIP
from rayvideo.models import VideoModel, load_model
from rayvideo.recipe import Recipe
from rayvideo.seeding import generator_for


@dataclass(frozen=True)
class Samples:
    """Frames of the recipe's clips."""

    frames: Tensor
    """[N, S, 3, H, W] in [0, 1], on the CPU."""
    captions: list[str]
    """Of the N clips."""
    source: str
    """Where the frames come from, in words."""

    def flat(self) -> tuple[Tensor, list[str]]:
        """Every frame [N·S, 3, H, W] with its caption."""
        return self.frames.flatten(0, 1), [text for text in self.captions for _ in range(self.frames.shape[1])]

    def one_each(self) -> tuple[Tensor, list[str]]:
        """The last frame of each clip [N, 3, H, W] with its caption."""
        return self.frames[:, -1], self.captions


def sample(recipe: Recipe, device: torch.device) -> tuple[Samples, LatentTable]:
    """Frames and latents of at most `CLIPS` clips; of `data.prepared` all latents, and frames that the VAE decodes.

    Raises:
        DataError: none of the clips that were tried can be read.
    """
    vae = load_model(recipe.model.path, family=recipe.model.family, device=device, parts=("vae",))
    chosen = torch.linspace(0, recipe.data.frames - 1, FRAMES_PER_CLIP + 2).long()[1:-1]
    if recipe.data.prepared is not None:
        table = open_prepared(recipe)
        batch = table.rows(_order(recipe, len(table))[:CLIPS])
        latents = vae.posterior(batch.mean.to(device), batch.logvar.to(device))
        with torch.no_grad():
            frames = vae.decode_frames(latents.mode(), chosen.expand(len(batch.ids), -1))
        return Samples(frames.clamp(0, 1).cpu(), batch.captions, "decoded from data.prepared"), table
    entries, clips = _read(recipe)
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255
    samples = Samples(pixels[:, chosen], [entry["caption"] for entry in entries], "of data.manifest")
    return samples, _encode(recipe, vae, entries, pixels)


def _read(recipe: Recipe) -> tuple[list[Entry], list[np.ndarray]]:
    """The first clips, in random order, that can be read; of each caption one, as far as there are enough captions."""
    data = recipe.data
    entire = read_captioned(str(data.manifest), data.root, data.max_bad_fraction)
    listed = [entry for entry in entire if entry["caption"]]
    shuffled = [listed[i] for i in _order(recipe, len(listed))]
    firsts = list({entry["caption"]: entry for entry in reversed(shuffled)}.values())
    tried = [*firsts, *(entry for entry in shuffled if entry not in firsts)][: 2 * CLIPS]
    entries: list[Entry] = []
    clips: list[np.ndarray] = []
    reasons: list[str] = []
    for entry in tried:
        if len(clips) == CLIPS:
            break
        try:
            clips.append(read_clip(entry["video"], data.frames, data.fps, data.height, data.width))
            entries.append(entry)
        except ClipError as error:
            reasons.append(str(error))
    if not clips:
        raise DataError(
            f"data.manifest {data.manifest!r}: none of {len(tried)} clips can be used: {'; '.join(reasons[:3])}"
        )
    return entries, clips


def _order(recipe: Recipe, count: int) -> list[int]:
    return torch.randperm(count, generator=generator_for(recipe.seed, "doctor", "clips")).tolist()


def _encode(recipe: Recipe, vae: VideoModel, entries: Sequence[Entry], pixels: Tensor) -> LatentTable:
    """The table that `data.latents` would make of these clips [N, F, 3, H, W], without its actors."""
    parts = [vae.encode_frames(part.to(vae.device)) for part in pixels.split(recipe.data.batch_size)]
    clips = pa.table(
        {
            "id": pa.array(range(len(entries)), pa.int64()),
            "video": [entry["video"] for entry in entries],
            "caption": [entry["caption"] for entry in entries],
            "mean": tensor_array(torch.cat([part.mean for part in parts]).cpu().numpy()),
            "logvar": tensor_array(torch.cat([part.logvar for part in parts]).cpu().numpy()),
        }
    )
    texts = ["", *dict.fromkeys(entry["caption"] for entry in entries)]
    embeddings = load_model(recipe.model.path, family=recipe.model.family, parts=("text",)).encode_prompts(texts)
    captions = ray.put(pa.table({"caption": texts, "embedding": tensor_array(embeddings.float().numpy())}))
    block, rejected = ray.put(clips), list[Rejected]()
    return LatentTable(
        [Place(block, row) for row in range(len(entries))],
        {text: Place(captions, row) for row, text in enumerate(texts)},
        rejected,
    )
