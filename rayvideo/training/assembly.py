"""The parts of a training, put together in the one order that works: model, adapter, objective, engine, trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from peft import PeftModel

from rayvideo.data.table import LatentTable
from rayvideo.models import VideoModel, load_model, start
from rayvideo.models.experts import trained_expert
from rayvideo.models.lora import add_lora
from rayvideo.models.pieces import feed_forward_in_pieces
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe
from rayvideo.seeding import seed_for
from rayvideo.serving.clip_reward import ClipReward
from rayvideo.serving.pool import RewardPool
from rayvideo.training import objectives
from rayvideo.training.engine import Engine
from rayvideo.training.meters import Clock
from rayvideo.training.needed import parts_for
from rayvideo.training.objective import Objective
from rayvideo.training.trainer import Trainer

EngineT = TypeVar("EngineT", bound=Engine)
MakeEngine = Callable[[PeftModel, Objective[Any]], EngineT]
"""What optimises the adapter of a denoiser, which is on the CPU, for an objective, and brings it to the device."""


class Assembly(NamedTuple, Generic[EngineT]):
    """A training that is ready for its first step."""

    model: VideoModel
    """Its denoiser is the engine's."""
    adapted: PeftModel
    """The denoiser with its adapter, inside the engine."""
    objective: Objective[Any]
    engine: EngineT
    trainer: Trainer


def assemble(
    recipe: Recipe,
    table: LatentTable,
    pool: RewardPool,
    device: torch.device,
    make_engine: MakeEngine[EngineT],
    *,
    rank: int = 0,
    fresh: bool = True,
) -> Assembly[EngineT]:
    """Put a training together; needs a process group of `torch.distributed`, of one process at least.

    Args:
        fresh: Whether it begins at its first step. A checkpoint brings an adapter of its own, and no `model.lora.start`
            is read.

    Raises:
        UserError: what the recipe names can't be loaded, or does not fit together.
    """
    model = load_model(
        recipe.model.path,
        family=recipe.model.family,
        shift=recipe.model.shift,
        dtype=DTYPES[recipe.training.precision],
        device="meta" if device.type == "meta" else "cpu",
        parts=parts_for(recipe),
    ).to(device, ("vae",))  # a denoiser may be too large to lie there whole: of it the engine moves what belongs there
    if recipe.model.compile == "blocks":
        model.compile_blocks()
    if recipe.model.checkpointing in ("blocks", "both", "clips"):
        model.enable_checkpointing()
    if recipe.model.checkpointing == "clips":
        feed_forward_in_pieces(model.denoiser)
    lora, expert = recipe.model.lora, trained_expert(model.denoiser, recipe.model.train)
    adapted = add_lora(model.denoiser, lora, seed_for(recipe.seed, "lora"), within=expert)
    if fresh:
        start.begin(adapted, lora, type(model), expert)
    clock = Clock(device)
    reward = ClipReward(pool, recipe.reward, recipe.data.frames, recipe.data.fps)
    objective = objectives.build(recipe, model, table.unconditional(recipe.model.negative_prompt), clock, reward.shown)
    engine = make_engine(adapted, objective)
    model.denoiser = engine.denoiser
    trainer = Trainer(recipe, objective, table, reward, engine, clock, rank=rank)
    return Assembly(model, adapted, objective, engine, trainer)
