"""Every objective learns: the real engine, trainer and rollouts on a tiny real model, in one process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from typing_extensions import Self

from rayvideo.data.table import LatentTable, Place
from rayvideo.data.tasks import FORMAT, tensor_array
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora
from rayvideo.recipe import Recipe, parse_recipe
from rayvideo.rewards import Reward
from rayvideo.serving.local import LocalPool
from rayvideo.training import objectives
from rayvideo.training.assembly import assemble
from rayvideo.training.deepspeed_engine import DeepSpeedEngine
from rayvideo.training.meters import Clock, gather_over_workers
from rayvideo.training.objectives.ddpo import Ddpo
from rayvideo.training.objectives.rwr import Rwr
from rayvideo.training.sampled import Sample, standardised

pytestmark = pytest.mark.usefixtures("process_group")

CPU = torch.device("cpu")
CAPTIONS = ["red cat", "blue dog", "snail"]


class Brightness(Reward):
    """Mean pixel."""

    @classmethod
    def load(cls, checkpoint: str | None, **options: Any) -> Self:
        return cls()

    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * frames.flatten(1).mean(1)


class BrightnessWithoutGradient(Brightness):
    """The same, for objectives that need no gradient."""

    differentiable = False

    @torch.no_grad()
    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(frames, prompts)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path) -> LatentTable:
    """Made-up posteriors of three clips of two frames, with the tiny text tower's embeddings."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    text = load_model(tiny_pipeline, parts=("text",))
    embeddings = text.encode_prompts(["", *CAPTIONS]).numpy()
    clips = {
        "id": pa.array(range(3)),
        "video": pa.array(CAPTIONS),
        "caption": pa.array(CAPTIONS),
        "mean": tensor_array(5 * rng.standard_normal((3, 4, 2, 4, 4), dtype=np.float32)),
        "logvar": tensor_array(rng.standard_normal((3, 4, 2, 4, 4), dtype=np.float32) - 4),
    }
    spoken = {"caption": pa.array(["", *CAPTIONS]), "embedding": tensor_array(embeddings)}
    for name, columns in (("clips", clips), ("captions", spoken)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=1, **FORMAT)
    return LatentTable(
        [Place(f"{folder}/clips.parquet", row) for row in range(3)],
        {caption: Place(f"{folder}/captions.parquet", row) for row, caption in enumerate(["", *CAPTIONS])},
        [],
    )


def recipe_for(
    pipeline: Path, judge: str = "Brightness", weight: float = 1.0, guidance: float = 3.0, **training: Any
) -> Recipe:
    """Clips of two small frames; a chain has two steps, and editing runs both of them."""
    return parse_recipe(
        {
            "model": {"path": str(pipeline), "checkpointing": "none"},
            "data": {"manifest": "unused", "frames": 2, "height": 32, "width": 32},
            "editing": {"steps": 2, "strength": 1.0, "guidance": guidance},
            "reward": {"judges": [{"name": "judge", "type": f"{__name__}:{judge}", "weight": weight}], "segments": 1},
            "training": {"precision": "fp32", "batch_size": 4, "warmup_steps": 0, "lr": 0.02, **training},
        }
    )


class Run:
    """A recipe's parts, in one process."""

    def __init__(self, recipe: Recipe, table: LatentTable) -> None:
        self.table = table
        self.model, _, self.objective, self.engine, self.trainer = assemble(
            recipe,
            table,
            LocalPool(recipe.reward.judges),
            CPU,
            lambda adapted, objective: DeepSpeedEngine(adapted, recipe.training, objective.passes),
        )

    def train(self, steps: int) -> list[dict[str, float]]:
        return [self.trainer.step(step) for step in range(1, steps + 1)]

    @torch.no_grad()
    def brightness(self, clips: int = 24) -> Tensor:
        """Of clips that are the same in all runs but for the adapter."""
        pixels = self.objective.make(self.table.rows([i % 3 for i in range(clips)]), 1000, 0).pixels
        return pixels.flatten(1).mean(1)[:clips]


@pytest.mark.parametrize(
    "training",
    [{}, {"objective": "draft", "editing": 2}, {"objective": "draft", "draft": {"noisings": 3}}],
    ids=["reward", "DRaFT-2", "DRaFT-LV"],
)
def test_the_judges_gradient_makes_clips_brighter(tiny_pipeline, table, training):
    recipe = recipe_for(tiny_pipeline, **{k: v for k, v in training.items() if k != "editing"})
    if grad_steps := training.get("editing"):
        recipe = recipe.model_copy(update={"editing": recipe.editing.model_copy(update={"grad_steps": grad_steps})})
    run = Run(recipe, table)
    before = run.brightness()
    values = run.train(8)
    assert (run.brightness() > before).float().mean() > 0.9
    assert values[0].keys() == values[-1].keys()
    assert {"reward", "loss", "score/judge", "judge_gradient_norm/judge", "gradient_norm"} <= values[0].keys()
    run.engine.close()


def test_ddpo_makes_clips_brighter_or_darker_by_scores_alone(tiny_pipeline, table):
    options = {"objective": "ddpo", "batch_size": 16, "ddpo": {"updates": 1, "clip_range": 0.1}}
    ends = []
    for weight in (1.0, -1.0):
        run = Run(recipe_for(tiny_pipeline, "BrightnessWithoutGradient", weight, guidance=1.0, **options), table)
        values = run.train(12)
        assert {"reward", "loss", "score/judge", "gradient_norm"} <= values[0].keys()
        ends.append(run.brightness())
        run.engine.close()
    assert (ends[0] > ends[1]).float().mean() > 0.7


@pytest.mark.parametrize("samples", ["generated", "data"])
def test_rwr_learns_the_better_samples_more(tiny_pipeline, table, samples):
    errors = []
    for weight in (1.0, -1.0):
        options = {"objective": "rwr", "batch_size": 8, "rwr": {"samples": samples, "temperature": 0.1, "updates": 1}}
        run = Run(recipe_for(tiny_pipeline, "BrightnessWithoutGradient", weight, guidance=1.0, **options), table)
        sampler = run.objective
        assert isinstance(sampler, Rwr)
        sample = sampler.make(table.rows([0, 1, 2, 0, 1, 2, 0, 1]), 1, 0)  # the untuned model's, the same in both runs
        brightness = sample.pixels.flatten(1).mean(1)
        for number in range(10):  # at the same noise levels in turn: draws depend on the numbers of step and update
            weights = sampler.weigh(standardised(weight * brightness, 8))
            for loss in sampler._replay(1, number % 2, [sample], [weights]):
                run.engine.backward(loss.value)
            run.engine.step(0.01)
        ends = torch.eye(8)[[int(brightness.argmax()), int(brightness.argmin())]]
        with torch.no_grad():
            errors.append([sum(sampler.loss(sample, one, 1, draw).item() for draw in range(2)) for one in ends])
        assert {"reward", "loss", "score/judge", "gradient_norm"} <= run.train(1)[0].keys()
        run.engine.close()
    (bright, dark), (bright_when_dark_earns, dark_when_dark_earns) = errors
    assert bright < bright_when_dark_earns
    assert dark > dark_when_dark_earns


def test_rwr_can_learn_the_clips_of_the_data_and_generates_nothing_then(tiny_pipeline, table):
    recipe = recipe_for(tiny_pipeline, objective="rwr", rwr={"samples": "data"})
    model = load_model(tiny_pipeline, parts=("vae",))
    clips = table.rows([2, 0])
    made = objectives.build(recipe, model, table.unconditional(), Clock(CPU)).make(clips, 1, 0)
    assert isinstance(made, Sample)
    assert len(made.path) == 1
    encoded = model.normaliser.restore(made.path[0])
    deviations = (encoded - clips.mean) / (clips.logvar / 2).exp()
    assert 0.8 < deviations.std() < 1.2
    torch.testing.assert_close(made.pixels, model.decode_frames(made.path[0], made.drawn).clamp(0, 1))


def test_what_is_trained_on_is_never_decoded_in_tiles(tiny_pipeline, table):
    """Frames wider than a tile: a gradient through tiles would be another one."""
    plain = recipe_for(tiny_pipeline, objective="draft")
    tiled = plain.model_copy(update={"model": plain.model.model_copy(update={"tiled_decoding": True})})
    model = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    latents, found = torch.randn(1, 4, 1, 4, 40), []
    for recipe in (plain, tiled):
        start = latents.clone().requires_grad_()
        objective = objectives.build(recipe, model, table.unconditional(), Clock(CPU))
        made = objective._show(start, table.rows([0]), torch.tensor([[0]]), 1)
        found.append((made.pixels.detach(), torch.autograd.grad(made.pixels.square().sum(), start)[0]))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert found[0][1].any()


def test_ddpo_goes_over_the_very_steps_it_took(tiny_pipeline, table):
    recipe = recipe_for(tiny_pipeline, objective="ddpo", ddpo={"updates": 2, "clip_range": 1e-4})
    run = Run(recipe, table)
    policy = run.objective
    assert isinstance(policy, Ddpo)
    assert policy.passes == 2
    sampled = policy.make(table.rows([0, 1, 2]), 1, 0)
    assert sampled.path.shape == (3, 3, 4, 2, 4, 4)
    # Nothing has been learned: every ratio is 1, so the loss is the mean of -advantage.
    for number in range(2):
        loss = policy.loss(sampled, torch.tensor([1.0, 2.0, 6.0]), 1, number)
        assert loss.item() == pytest.approx(-3.0, abs=1e-4)
        assert loss.requires_grad
    run.engine.close()


def test_ddpo_can_learn_the_noisiest_steps_alone(tiny_pipeline, table):
    advantages, gradients = torch.tensor([1.0, -2.0, 1.0]), []
    for learned in (None, 1):
        recipe = recipe_for(tiny_pipeline, objective="ddpo", ddpo={"learned_steps": learned, "eta": 0.5})
        model = load_model(tiny_pipeline, parts=("denoiser", "vae"))
        adapted = add_lora(model.denoiser, recipe.model.lora, seed=0)
        # A schedule whose last step is the one of more noise, unlike the usual ones.
        model.scheduler.alphas_cumprod[[501, 1]] = torch.tensor([0.5, 0.51])
        model.scheduler.final_alpha_cumprod = torch.tensor(0.9)
        policy = objectives.build(recipe, model, table.unconditional(), Clock(CPU))
        assert isinstance(policy, Ddpo)
        sampled = policy.make(table.rows([0, 1, 2]), 1, 0)
        loss = policy.loss(sampled, advantages, 1, policy.passes - 1)
        gradients.append(torch.autograd.grad(loss, [w for n, w in adapted.named_parameters() if "lora_B" in n]))
    assert policy.passes == len(sampled.log_probs) == 1
    assert any(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_a_schedule_that_ends_without_noise_has_no_probability_in_its_last_step(tiny_pipeline, table):
    recipe = recipe_for(tiny_pipeline, objective="ddpo")
    model = load_model(tiny_pipeline, parts=("denoiser", "vae"))
    model.scheduler.final_alpha_cumprod = torch.tensor(1.0)
    policy = objectives.build(recipe, model, table.unconditional(), Clock(CPU))
    assert isinstance(policy, Ddpo)
    assert policy.passes == 1
    sampled = policy.make(table.rows([0, 1]), 1, 0)
    assert sampled.path.isfinite().all()
    assert sampled.log_probs.shape == (1, 2)


@pytest.mark.parametrize("objective", ["draft", "rwr", "ddpo"])
def test_a_sample_depends_on_its_place_in_the_step_alone(tiny_pipeline, table, objective):
    recipe = recipe_for(tiny_pipeline, objective=objective)
    objective = objectives.build(
        recipe, load_model(tiny_pipeline, parts=("denoiser", "vae")), table.unconditional(), Clock(CPU)
    )
    with torch.no_grad():
        together, alone = objective.make(table.rows([0, 1]), 2, 4), objective.make(table.rows([1]), 2, 5)
    torch.testing.assert_close(together.pixels[1:], alone.pixels, rtol=1e-4, atol=1e-5)
    assert torch.equal(together.drawn[1:], alone.drawn)


def test_noisings_share_a_sample_and_differ(tiny_pipeline, table):
    recipe = recipe_for(tiny_pipeline, objective="draft", draft={"noisings": 3})
    objective = objectives.build(
        recipe, load_model(tiny_pipeline, parts=("denoiser", "vae")), table.unconditional(), Clock(CPU)
    )
    with torch.no_grad():
        made = objective.make(table.rows([0, 1]), 1, 0)
    assert made.clips.captions == CAPTIONS[:2] * 3
    assert made.pixels.shape[0] == len(made.clips.mean) == 6
    noisings = made.pixels.unflatten(0, (3, 2)).flatten(2)
    spread = noisings.std(0).mean()
    assert 0 < spread < (noisings[:, 0] - noisings[:, 1]).abs().mean()


def test_samples_of_a_caption_come_in_a_row_and_are_compared_among_themselves(tiny_pipeline, table):
    options: dict[str, Any] = {"objective": "rwr", "batch_size": 4, "accumulation": 2, "samples_per_caption": 4}
    run = Run(recipe_for(tiny_pipeline, **options), table)
    chosen = run.trainer._chosen(1)
    assert chosen == [chosen[0]] * 4 + [chosen[4]] * 4
    assert chosen[0] != chosen[4]
    one, other = torch.tensor([0.0, 1, 2, 5]), torch.tensor([10.0, 11, 12, 15])
    assert isinstance(run.objective, Rwr)
    weights = run.objective._weigh([one, other])
    torch.testing.assert_close(weights[0], weights[1])
    assert weights[0].tolist() == sorted(weights[0].tolist())
    run.engine.close()


def test_workers_scores_are_gathered_by_rank():
    values = torch.arange(3.0)
    assert torch.equal(gather_over_workers(values), values)


def test_guidance_leads_away_from_the_recipes_negative_prompt(tiny_pipeline, table):
    recipe = recipe_for(tiny_pipeline)
    model = recipe.model.model_copy(update={"negative_prompt": CAPTIONS[1]})
    for one, prompt in ((recipe, ""), (recipe.model_copy(update={"model": model}), CAPTIONS[1])):
        run = Run(one, table)
        assert torch.equal(run.objective._unconditional, table.unconditional(prompt))
        run.engine.close()
    assert not torch.equal(table.unconditional(), table.unconditional(CAPTIONS[1]))
