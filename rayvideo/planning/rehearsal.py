"""A training step without weights: the recipe's own trainer runs on the meta device, and is counted while it does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves, tree_map_only

from rayvideo.data.table import Batch, LatentTable
from rayvideo.models import load_model
from rayvideo.models.lora import lora_parameters
from rayvideo.planning.count import Census
from rayvideo.planning.judges import Asked, ask, shapes_of, view
from rayvideo.recipe import Recipe
from rayvideo.sections import Judge, Workers
from rayvideo.serving.pool import Answer, RewardPool, Sent
from rayvideo.training.assembly import assemble
from rayvideo.training.engine import Update

META = torch.device("meta")
DENOISER, DECODER = "denoiser", "decoder"


@dataclass(frozen=True)
class Rehearsal:
    """One worker's micro-batch, counted: bytes and FLOPs. All but the weights grow with the clips in it."""

    frozen: int
    """Bytes of the denoiser's own weights."""
    frozen_numbers: int
    """How many numbers they are."""
    vae: int
    """Bytes of the VAE's weights."""
    trainable: int
    """Numbers of the adapter."""
    kept: dict[str, int]
    """Bytes alive while the clips are away at the judges, those of the denoiser's graph and the rest."""
    peak: dict[str, int]
    """Bytes alive when most are; of the adapter's gradients none are."""
    flops: dict[str, int]
    """Of the denoiser and the rest, with backward passes and what is run again in them."""
    passes: int
    """How often the denoiser's weights are needed: forward passes, repeated ones, and backward passes."""
    judges: dict[str, Asked | None]
    """By name; None: nobody can say without loading it."""


def rehearse(recipe: Recipe) -> Rehearsal:
    """Run one micro-batch of a recipe, whose precisions are settled, from its latents to the adapter's gradient.

    No weights are read. Takes seconds for a small model, half a minute for one of 14 billion weights.

    Raises:
        UserError: what the recipe names can't be loaded, or does not fit together.
    """
    recipe = _alone(recipe)
    census = Census()
    pool = _Pool(recipe.reward.judges, census)
    with _group():
        built = assemble(recipe, _table(recipe), pool, META, lambda adapted, _: _Engine(adapted, census), fresh=False)
        adapter = list(lora_parameters(built.adapted).values())
        everything = built.model.tensors()
        census.ignore(everything)
        built.objective.update_count = 1  # more would be the same again
        with census:
            built.trainer.step(1)
    weights = {id(one): one for one in adapter}
    frozen = [one for one in _tensors(built.adapted) if id(one) not in weights]
    return Rehearsal(
        frozen=_bytes(frozen),
        frozen_numbers=sum(one.numel() for one in frozen),
        vae=_bytes(everything) - _bytes(frozen) - _bytes(adapter),
        trainable=sum(one.numel() for one in adapter),
        kept=_both(pool.kept),
        peak=_both(census.peak),
        flops=_both(census.flops),
        passes=built.engine.passes,
        judges=pool.asked(built.objective.needs_gradient),
    )


def _alone(recipe: Recipe) -> Recipe:
    """The recipe with one worker and one micro-batch."""
    options = recipe.training
    alone = {
        "workers": Workers(min=1, max=1),
        "accumulation": 1,
        "samples_per_caption": math.gcd(options.samples_per_caption, options.batch_size),
    }
    return recipe.model_copy(update={"training": options.model_copy(update=alone)})


@contextmanager
def _group() -> Iterator[None]:
    """A process group of one that moves nothing, for trainers that compare all workers' samples."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(one.nbytes for one in tensors)


def _both(counted: Counter[str]) -> dict[str, int]:
    """By denoiser and decoder; whatever came before the first is the decoder's, as what comes after it."""
    return {DENOISER: counted[DENOISER], DECODER: counted.total() - counted[DENOISER]}


class _Table(LatentTable):
    """Clips and captions of the right shapes."""

    def __init__(self, latents: tuple[int, ...], prompt: tuple[int, int]) -> None:
        self._latents, self._prompt = latents, prompt

    def __len__(self) -> int:
        return 1

    def rows(self, indices: Sequence[int]) -> Batch:
        count = len(indices)
        mean, logvar = (torch.empty(count, *self._latents, device=META) for _ in range(2))
        embeddings = torch.empty(count, *self._prompt, device=META)
        return Batch(list(indices), [""] * count, [""] * count, mean, logvar, embeddings)

    def unconditional(self, negative_prompt: str = "") -> Tensor:
        return torch.empty(1, *self._prompt, device=META)


def _table(recipe: Recipe) -> _Table:
    model, data = recipe.model, recipe.data
    shapes = load_model(model.path, family=model.family, shift=model.shift, device=META, parts=("vae", "text"))
    return _Table(shapes.latent_shape(data.frames, data.height, data.width), shapes.prompt_shape)


class _Pool(RewardPool):
    """Judges that answer at once, without looking."""

    def __init__(self, judges: Sequence[Judge], census: Census) -> None:
        self.judges = tuple(judges)
        self.kept: Counter[str] = Counter()
        """What is alive while clips are away."""
        self._sent: dict[str, Sent] = {}
        self._census = census
        self._rewards = {judge.name: shapes_of(judge) for judge in judges}
        self._views = [view(judge, self._rewards[judge.name]) for judge in judges]

    def asked(self, gradient: bool) -> dict[str, Asked | None]:
        """Judge -> what a forward pass of what it was sent takes."""
        found = {}
        for judge in self.judges:
            reward, sent = self._rewards[judge.name], self._sent[judge.name]
            shape = (judge.micro_batch, *sent.items.shape[1:])
            found[judge.name] = None if reward is None else ask(reward, shape, gradient, sent.times)
        return found

    def _pack(self, items: Tensor) -> None:
        return None

    def _ask(self, judge: Judge, sent: Sent) -> None:
        self._sent[judge.name] = sent

    def receive(self, sent: Sent) -> dict[str, Answer]:
        self.kept = self._census.now.copy()
        slope = torch.empty_like(sent.items, dtype=torch.float32) if sent.gradient else None
        scores = torch.empty(len(sent.items), device=META)
        return {judge.name: Answer(scores, slope, judge.micro_batch) for judge in sent.judges}


class _Engine:
    """An engine that updates nothing."""

    def __init__(self, adapted: PeftModel, census: Census) -> None:
        self.denoiser = _Denoiser(adapted, census)
        self._census = census
        for parameter in lora_parameters(adapted).values():  # counted by what DeepSpeed makes of them
            parameter.register_post_accumulate_grad_hook(_forget)

    @property
    def passes(self) -> int:
        return self.denoiser.passes

    def backward(self, loss: Tensor) -> None:
        """Go back from the loss."""
        loss.backward()

    def step(self, lr: float) -> Update:
        """Do nothing."""
        return Update(0.0, True)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _Denoiser(nn.Module):
    """Tells the census when the denoiser is at work; of calls that carry no gradient only the first is made.

    All others with inputs of the same shapes are the same.
    """

    def __init__(self, module: nn.Module, census: Census) -> None:
        super().__init__()
        self.module = module
        self.passes = 0
        self._census = census
        self._known: dict[object, tuple[Any, int, int]] = {}

    def forward(self, *args: Any, **options: Any) -> Any:
        census = self._census
        self.passes += 1
        census.phase = DENOISER
        if torch.is_grad_enabled():
            out = self.module(*args, **options)
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(self._came_back)
        else:
            out = self._without_gradient(args, options)
        census.phase = DECODER
        return out

    def _without_gradient(self, args: Any, options: Any) -> Any:
        census = self._census
        key = tuple(tuple(one.shape) for one in tree_leaves((args, options)) if isinstance(one, Tensor))
        before = census.now.total()
        if key in self._known:
            out, high, flops = self._known[key]
            census.rise(high)
            census.flops[DENOISER] += flops
            return tree_map_only(Tensor, torch.empty_like, out)
        counted, mark, census.mark = census.flops[DENOISER], census.mark, before
        out = self.module(*args, **options)
        high, census.mark = census.mark - before, max(mark, census.mark)
        shapes = tree_map_only(Tensor, lambda one: one.new_empty(()).expand(one.shape), out)
        self._known[key] = (shapes, high, census.flops[DENOISER] - counted)
        return out

    def _came_back(self, gradient: Tensor) -> None:
        """From the decoder, in the backward pass."""
        self.passes += 1
        self._census.phase = DENOISER
