"""A handful of the recipe's clips: frames and clips for the judges, latents for a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from rayvideo.data.manifest import Entry, read_captioned
from rayvideo.data.prepared import open_prepared
from rayvideo.data.table import DataError, LatentTable, Place, Rejected
from rayvideo.data.tasks import tensor_array
from rayvideo.data.trimmed import embedding_array
from rayvideo.data.video import ClipError, read_clip
from rayvideo.doctor.thresholds import CLIPS, FRAMES_PER_CLIP
from rayvideo.models import VideoModel, load_model
from rayvideo.recipe import Recipe
from rayvideo.rewards import ClipJudge, Reward, RewardError, resolve
from rayvideo.rewards.clip_judge import at_times
from rayvideo.rewards.temporal import clip_frames
from rayvideo.sections import Judge
from rayvideo.seeding import generator_for
from rayvideo.serving.wire import Times


@dataclass(frozen=True)
class Samples:
    """Frames of the recipe's clips, and the clips themselves where a judge sees clips."""

    frames: Tensor
    """[N, S, 3, H, W] in [0, 1], on the CPU."""
    captions: list[str]
    """Of the N clips."""
    source: str
    """Where the frames come from, in words."""
    clips: Tensor | None = None
    """[N, F, 3, H, W]; None if all judges see frames."""
    fps: float = 0.0
    """Of the clips."""

    def flat(self) -> tuple[Tensor, list[str]]:
        """Every frame [N·S, 3, H, W] with its caption."""
        return self.frames.flatten(0, 1), [text for text in self.captions for _ in range(self.frames.shape[1])]

    def one_each(self) -> tuple[Tensor, list[str]]:
        """The last frame of each clip [N, 3, H, W] with its caption."""
        return self.frames[:, -1], self.captions

    def asked(self, reward: Reward, device: torch.device) -> Asked:
        """A judge, and what it is shown on `device`.

        Raises:
            RewardError: it sees clips, and these are too short for it or none were read.
        """
        if not isinstance(reward, ClipJudge):
            (frames, captions), (single, single_captions) = self.flat(), self.one_each()
            return Asked(reward, frames.to(device), captions, single.to(device), single_captions, None)
        if self.clips is None:
            raise RewardError(f"judge {reward.name!r} sees clips, of which none were read: can this process import it?")
        try:
            indices, seconds = clip_frames(self.clips.shape[1], self.fps, reward.fps, reward.frames)
        except ValueError as error:
            raise RewardError(f"judge {reward.name!r} {error}; raise data.frames") from error
        clips, times = self.clips[:, indices].to(device), tuple(seconds.tolist())
        return Asked(at_times(reward, times), clips, self.captions, clips, self.captions, times)


class Asked(NamedTuple):
    """A judge, and what it is shown of the samples."""

    reward: Reward
    """Of clips, a judge that has been told their frames' times."""
    items: Tensor
    """Frames [N·S, 3, H, W] or clips [N, F', 3, H, W] in [0, 1]."""
    captions: list[str]
    single: Tensor
    """One frame of each of the N clips, or again the clips."""
    single_captions: list[str]
    times: Times | None
    """Of clips' frames."""


def sample(recipe: Recipe, device: torch.device) -> tuple[Samples, LatentTable]:
    """Frames and latents of at most `CLIPS` clips; of `data.prepared` all latents, and frames that the VAE decodes.

    Raises:
        DataError: none of the clips that were tried can be read.
    """
    vae = load_model(recipe.model.path, family=recipe.model.family, device=device, parts=("vae",))
    chosen = torch.linspace(0, recipe.data.frames - 1, FRAMES_PER_CLIP + 2).long()[1:-1]
    # Whole clips are large, and travel from process to process.
    whole = any(map(_sees_clips, (*recipe.reward.judges, *recipe.evaluation.judges)))
    if recipe.data.prepared is not None:
        table = open_prepared(recipe)
        batch = table.rows(_order(recipe, len(table))[:CLIPS])
        latents = vae.posterior(batch.mean.to(device), batch.logvar.to(device))
        decoded = torch.arange(recipe.data.frames) if whole else chosen
        with torch.no_grad():
            parts = [vae.decode_frames(clip[None], decoded[None]) for clip in latents.mode()]
        clips = torch.cat(parts).clamp(0, 1).cpu()
        frames = clips[:, chosen] if whole else clips
        return Samples(
            frames, batch.captions, "decoded from data.prepared", clips if whole else None, recipe.data.fps
        ), table
    entries, read = _read(recipe)
    pixels = torch.from_numpy(np.stack(read)).permute(0, 1, 4, 2, 3).float() / 255
    captions = [entry["caption"] for entry in entries]
    samples = Samples(pixels[:, chosen], captions, "of data.manifest", pixels if whole else None, recipe.data.fps)
    return samples, _encode(recipe, vae, entries, pixels)


def _sees_clips(judge: Judge) -> bool:
    """Whether it is a judge of clips; one that this process can't import is told of when it is loaded."""
    try:
        return resolve(judge.type).sees == "clip"
    except RewardError:
        return False


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
    texts = list(dict.fromkeys([recipe.model.negative_prompt, *(entry["caption"] for entry in entries)]))
    embeddings = load_model(recipe.model.path, family=recipe.model.family, parts=("text",)).encode_prompts(texts)
    captions = ray.put(pa.table({"caption": texts, "embedding": embedding_array(embeddings.float().numpy())}))
    block, rejected = ray.put(clips), list[Rejected]()
    return LatentTable(
        [Place(block, row) for row in range(len(entries))],
        {text: Place(captions, row) for row, text in enumerate(texts)},
        rejected,
    )
