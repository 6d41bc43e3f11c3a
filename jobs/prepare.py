"""Encode a recipe's clips and captions once, so that fine-tuning can start from latents.

    python jobs/prepare.py --recipe jobs/recipes/menagerie.yaml --out runs/latents [key=value ...]

Run again after an interruption, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex

from rayvideo.importing import quickly

with quickly():
    from rayvideo import command, own_modules
    from rayvideo.connection import start_ray
    from rayvideo.data import latents
    from rayvideo.paths import argument
    from rayvideo.recipe import load_recipe


def main(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    own_modules.make_importable(recipe, args.recipe)
    command.refuse_lost({"--out": args.out})
    latents.check(recipe)
    start_ray(recipe, "data")
    summary = latents.prepare_to(recipe, args.out)
    print(
        f"{args.out}: {summary['clips']} clips ({summary['new_clips']} new) and {summary['captions']} captions in "
        f"{summary['seconds']:.0f} s; {summary['rejected']} clips dropped"
        + (f", see {args.out}/rejected.jsonl" if summary["rejected"] else "")
    )
    kept = [override for override in args.overrides if not override.startswith("data.manifest=")]
    overrides = [*kept, "data.manifest=null", f"data.prepared={args.out}"]
    print(f"Next: python jobs/finetune.py --recipe {shlex.join([args.recipe, *overrides])}")


if __name__ == "__main__":
    parser = command.recipe_arguments(__doc__ or "")
    parser.add_argument(
        "--out", required=True, type=argument, metavar="DIR", help="folder or cloud URI for the latents"
    )
    command.run(main, parser)
