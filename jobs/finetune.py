"""Fine-tune a text-to-video model on the gradient of judges.

    python jobs/finetune.py --recipe jobs/recipes/menagerie.yaml tracking.run_name=first training.steps=40
    python jobs/finetune.py --recipe jobs/recipes/menagerie.yaml tracking.run_name=first --resume

Writes adapter/, checkpoints/, metrics.jsonl, samples/ and summary.json into the run folder, and logs to MLflow.
"""

from __future__ import annotations

import argparse

from rayvideo.importing import quickly

with quickly():
    from rayvideo import command, own_modules
    from rayvideo.connection import start_ray
    from rayvideo.planning.refuse import refuse_too_large
    from rayvideo.recipe import load_recipe
    from rayvideo.runs.folder import named
    from rayvideo.tracking import tracking_uri, ui_command
    from rayvideo.training import preflight
    from rayvideo.training.launch import finetune, parts_of


def main(args: argparse.Namespace) -> None:
    recipe = named(load_recipe(args.recipe, args.overrides))
    own_modules.make_importable(recipe, args.recipe)
    command.refuse_lost({"storage": recipe.storage})
    preflight.check(recipe, resume=args.resume)
    preflight.check_place(recipe, resume=args.resume, overrule=args.overrule)
    start_ray(recipe, *parts_of(recipe))
    refuse_too_large(recipe)
    summary = finetune(recipe, resume=args.resume, overrule=args.overrule, typed=args.overrides)
    for judge, score in summary["scores"].items():
        print(f"{judge}: {score['first']:.4f} in the first {summary['window']} steps, {score['last']:.4f} in the last")
    if verdict := summary.get("verdict"):
        print(
            f"Ended after step {verdict['given_at']}, with the adapter of step {verdict['step']}: {verdict['reason']}"
        )
    print(f"Adapter after {summary['steps']} steps and {summary['seconds']:.0f} s: {summary['adapter']}")
    print(f"MLflow: {ui_command(tracking_uri(recipe))}")


if __name__ == "__main__":
    parser = command.recipe_arguments(__doc__ or "")
    parser.add_argument("--resume", action="store_true", help="go on with the run of this tracking.run_name")
    parser.add_argument(
        "--overrule",
        action="store_true",
        help="with --resume: go on to the last step, whatever training.stop_rule said",
    )
    command.run(main, parser)
