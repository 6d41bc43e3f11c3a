"""What actors that make clips share: captions are embedded first, and clips made after that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from rayvideo.data.trimmed import Trimmed
from rayvideo.evaluation.adapter import put_on
from rayvideo.evaluation.generate import generate_clips
from rayvideo.models import VideoModel, load_model
from rayvideo.precision import DTYPES
from rayvideo.recipe import Recipe


class Generator:
    """Holds the text tower while captions are embedded, and from the first clip on denoiser, adapter and VAE instead.

    A tower such as UMT5-XXL takes as much memory as a denoiser of 14 B. Parts are loaded when they are first needed.
    """

    def __init__(self, recipe: Recipe, adapter: str | None) -> None:
        self._recipe = recipe
        self._adapter = adapter
        self._device = torch.device("cuda" if recipe.evaluation.gpus_per_worker else "cpu")

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> list[Trimmed]:
        """The embedding of each caption, made one by one, so that none depends on its neighbours."""
        return [Trimmed.of(self._text.encode_prompts([caption])[0].float().cpu().numpy()) for caption in captions]

    def _clips(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        embeddings: Sequence[Trimmed],
        fixed_batch: bool = False,
    ) -> Tensor:
        """Clips [N, F, 3, H, W] of `generate_clips`; `embeddings` are of the negative prompt and of the captions."""
        options, data, negative = self._recipe.evaluation, self._recipe.data, self._recipe.model.negative_prompt
        return generate_clips(
            self._model,
            captions,
            seeds,
            steps=steps,
            guidance=options.guidance,
            negative_prompt=negative,
            frames=data.frames,
            height=data.height,
            width=data.width,
            batch_size=options.batch_size,
            fixed_batch=fixed_batch,
            tiled=self._recipe.model.tiled_decoding,
            embeddings={
                caption: torch.from_numpy(one.whole())
                for caption, one in zip([negative, *captions], embeddings, strict=True)
            },
        )

    @cached_property
    def _text(self) -> VideoModel:
        model = self._recipe.model
        return load_model(model.path, family=model.family, device=self._device, parts=("text",))

    @cached_property
    def _model(self) -> VideoModel:
        self.__dict__.pop("_text", None)
        torch.cuda.empty_cache()  # for others on the device, such as judges
        return self._load()

    def _load(self) -> VideoModel:
        model = load_model(
            self._recipe.model.path,
            family=self._recipe.model.family,
            shift=self._recipe.model.shift,
            dtype=DTYPES[self._recipe.training.precision],
            device=self._device,
            parts=("denoiser", "vae"),
        )
        if self._adapter is not None:
            put_on(model, self._adapter)
        return model
