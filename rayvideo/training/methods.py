"""Which rollout and which trainer an objective of the recipe means."""

from __future__ import annotations

from torch import Tensor

from rayvideo.data.table import LatentTable
from rayvideo.models import VideoModel
from rayvideo.recipe import Recipe
from rayvideo.serving.pool import RewardPool
from rayvideo.training.ddpo import Ddpo
from rayvideo.training.draft import Drafter
from rayvideo.training.engine import Engine
from rayvideo.training.meters import Clock
from rayvideo.training.rollout import Editor, Rollout
from rayvideo.training.rwr import Rwr
from rayvideo.training.sampling import Sampler
from rayvideo.training.trainer import SamplingTrainer, Trainer

ROLLOUTS: dict[str, type[Rollout]] = {"reward": Editor, "draft": Drafter, "rwr": Rwr, "ddpo": Ddpo}


def rollout_for(recipe: Recipe, model: VideoModel, unconditional: Tensor, clock: Clock) -> Rollout:
    """How `training.objective` makes the clips that are judged; see `Rollout`."""
    return ROLLOUTS[recipe.training.objective](recipe, model, unconditional, clock)


def trainer_for(
    rollout: Rollout,
    recipe: Recipe,
    table: LatentTable,
    pool: RewardPool,
    engine: Engine,
    clock: Clock,
    *,
    rank: int = 0,
) -> Trainer:
    """The trainer that learns from what `rollout` makes; see `Trainer`."""
    kind = SamplingTrainer if isinstance(rollout, Sampler) else Trainer
    return kind(recipe, rollout, table, pool, engine, clock, rank=rank)
