"""How much of DDPO's gradient is noise, chain step by chain step, on the untuned menagerie model; without Ray.

    python benchmarks/policy_gradient.py --captions 60

Each caption's round of samples gives one gradient per step of the chain. Prints Markdown: the step's σ, the power of
the rounds' noise over that of their common signal (about as many rounds must be averaged until both are equal; "-"
where no signal was found), and the cosine of the rounds' mean with the pathwise gradient, which differentiates chain,
decoder and judge of the same samples; then the same for the sum over the n noisiest steps
(`training.ddpo.learned_steps`). A sample's reward is the plain mean of its frames' scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from rayvideo.menagerie.latents import drawn_table
from rayvideo.models import load_model
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.recipe import load_recipe
from rayvideo.rewards import clamp_pixels, load_reward
from rayvideo.seeding import seed_for
from rayvideo.training import objectives
from rayvideo.training.meters import Clock
from rayvideo.training.objectives.ddpo import Ddpo
from rayvideo.training.sampled import standardised

RECIPE = Path(__file__).parents[1] / "jobs/recipes/menagerie.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=60, help="rounds, each of another caption")
    parser.add_argument("--samples", type=int, default=16, help="samples of a round")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="steps of the chain (D)")
    parser.add_argument("--guidance", type=float, default=1.0)
    arguments = parser.parse_args()

    overrides = [
        "training.objective=ddpo",
        f"training.batch_size={arguments.samples}",
        f"data.frames={arguments.frames}",
        f"editing.steps={arguments.steps}",
        f"editing.guidance={arguments.guidance}",
    ]
    recipe = load_recipe(RECIPE, overrides)
    model = load_model(recipe.model.path, family=recipe.model.family)
    with TemporaryDirectory() as folder:
        table = drawn_table(model, arguments.captions, Path(folder))
        model.denoiser = add_lora(model.denoiser, recipe.model.lora, seed_for(recipe.seed, "lora"))
        policy = objectives.build(recipe, model, table.unconditional(), Clock(model.device))
        assert isinstance(policy, Ddpo)
        judge = load_reward(recipe.reward.judges[0])
        weights = list(lora_parameters(model.denoiser).values())
        rounds, pathwise = [], []
        for number in range(arguments.captions):
            clips = table.rows([number] * arguments.samples)
            sample = policy.make(clips, number, 0)
            with torch.enable_grad():
                # The same noise again, for a chain that carries a graph.
                path, _ = policy._sample(clips, policy._generators("sample", clips, number, 0))
                pixels = clamp_pixels(model.decode_frames(path[-1], sample.drawn), recipe.reward.clamp)
            captions = [caption for caption in clips.captions for _ in range(pixels.shape[1])]
            rewards = judge.score(pixels.flatten(0, 1), captions).view(arguments.samples, -1).mean(1)
            advantages = standardised(rewards.detach(), arguments.samples)
            pathwise.append(_gradient((rewards / rewards.detach().std()).mean(), weights))
            losses = (policy.loss(sample, advantages, number, step) for step in range(policy.passes))
            rounds.append(torch.stack([-_gradient(loss, weights) for loss in losses]))

    of_steps, truth = torch.stack(rounds), torch.stack(pathwise).mean(0)
    print("| step | σ | noise / signal | cosine |\n|---|---|---|---|")
    for step in range(policy.passes):
        print(f"| t = {policy._chain.timesteps[step]} | {policy.noisiest[step]:.3f} | {_row(of_steps[:, step], truth)}")
    noisiest = list(policy.noisiest)
    for count in range(1, policy.passes + 1):
        print(f"| learned_steps: {count} | | {_row(of_steps[:, noisiest[:count]].sum(1), truth)}")


def _gradient(value: Tensor, weights: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, weights, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _row(rounds: Tensor, truth: Tensor) -> str:
    """Of gradients [rounds, weights]: noise over signal in power, and the cosine of their mean with `truth`."""
    mean = rounds.mean(0)
    noise = (rounds - mean).square().sum() / (len(rounds) - 1)
    signal = mean.square().sum() - noise / len(rounds)  # the mean's own noise taken off
    ratio = f"{noise / signal:.0f}" if signal > 0 else "-"
    return f"{ratio} | {torch.cosine_similarity(mean, truth, dim=0):.2f} |"


if __name__ == "__main__":
    main()
