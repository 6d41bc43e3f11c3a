"""Models with two denoisers: one for steps with much noise, one for those with little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from rayvideo.models.base import ModelError

EXPERTS = ("high", "low")
"""Names of the two denoisers within `Experts`, hence first words of the names of all their layers."""


class Unloaded(nn.Module):
    """Stands where an expert would that a process does not load, because it never asks it."""

    def forward(self, latents: Tensor, timestep: Tensor, *others: Tensor, **options: Any) -> NoReturn:
        """Refuse."""
        raise ModelError(
            f"timestep {timestep.max().item():.0f} is the other expert's, which was not loaded; the steps of an "
            "objective's `chain` say which experts training needs"
        )


class Experts(nn.Module):
    """Two denoisers as one: each call goes to the one that was trained for its noise level.

    An adapter, an engine and a checkpoint see a single network, whose layers are called `high.…` and `low.…`. So
    `model.lora.targets` names layers of both, or with their full names those of one alone.
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        """Put two diffusers denoisers behind one call.

        Args:
            high: Denoises at timesteps from `boundary` up; `Unloaded` where none of these is asked.
            low: Denoises at timesteps below `boundary`.
            boundary: In the units of timesteps. A pipeline's `boundary_ratio` 0.875 of 1000 timesteps is 875.
        """
        super().__init__()
        self.high = high
        self.low = low
        self.boundary = boundary

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, *, return_dict: Literal[False] = False
    ) -> tuple[Tensor]:
        """The prediction for latents [B, C, F, h, w] at `timestep` and prompts [B, L, C], alone in a tuple.

        Where all clips share one timestep [], or theirs [B] lie on one side of the boundary, one expert runs on the
        batch; else each runs on its own clips. An expert that does not run gets no gradient.
        """
        noisy = timestep >= self.boundary
        if noisy.all():
            return self._ask(self.high, latents, timestep, prompt_embeds)
        if not noisy.any():
            return self._ask(self.low, latents, timestep, prompt_embeds)
        shares = {self.high: noisy.nonzero().flatten(), self.low: (~noisy).nonzero().flatten()}
        predictions = [
            self._ask(expert, latents[clips], timestep[clips], prompt_embeds[clips])[0]
            for expert, clips in shares.items()
        ]
        places = torch.cat(list(shares.values())).argsort()  # where each clip of the batch stands among the shares
        return (torch.cat(predictions)[places],)

    def visited(self, timesteps: Tensor) -> set[str]:
        """Names of the experts that a chain over these timesteps asks."""
        return {EXPERTS[0] if noisy else EXPERTS[1] for noisy in (timesteps >= self.boundary).tolist()}

    @staticmethod
    def _ask(expert: nn.Module, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> tuple[Tensor]:
        prediction: Tensor = expert(latents, timestep, prompt_embeds, return_dict=False)[0]
        return (prediction,)


def trained_expert(denoiser: nn.Module, option: Literal["low", "high", "both"] | None) -> str | None:
    """The expert that alone gets an adapter by the recipe's `model.train`; None: the whole denoiser does.

    Every chain ends at little noise, with the low expert.

    Raises:
        ModelError: an expert is named, but the model has none.
    """
    if not isinstance(denoiser, Experts):
        if option is not None:
            raise ModelError(f"model.train {option!r}: this model has one denoiser; allowed is null")
        return None
    return {None: "low", "both": None}.get(option, option)


def split_by_expert(tensors: Mapping[str, Tensor]) -> dict[str | None, dict[str, Tensor]]:
    """An adapter's tensors for each expert that has some, by the names that its layers have within the expert.

    The tensors of a model with one denoiser stay together, under None.
    """
    if not all(name.startswith(tuple(f"{expert}." for expert in EXPERTS)) for name in tensors):
        return {None: dict(tensors)}
    shares: dict[str | None, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        expert, _, layer = name.partition(".")
        shares.setdefault(expert, {})[layer] = tensor
    return shares
