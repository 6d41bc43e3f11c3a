"""Make a clip of every caption of a list, with the model as it is or with an adapter.

    python jobs/generate.py --recipe R --captions FILE --out DIR [key=value ...]
    python jobs/generate.py --recipe R --captions FILE --adapter DIR [--merge] --out DIR evaluation.steps=50

Writes clips/*.mp4, index.jsonl and summary.json into --out. Run again after an
interruption, it goes on where it stopped.
"""

from __future__ import annotations

import argparse

from rayvideo.importing import quickly

with quickly():
    from rayvideo import command, own_modules
    from rayvideo.connection import start_ray
    from rayvideo.evaluation.produce import check, order, produce
    from rayvideo.paths import argument
    from rayvideo.recipe import load_recipe
    from rayvideo.settling import settle
    from rayvideo.storage import absolute


def main(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    own_modules.make_importable(recipe, args.recipe)
    command.refuse_lost({"--out": args.out})
    adapter = args.adapter and absolute(args.adapter)
    check(recipe, args.captions, adapter, merge=args.merge)
    start_ray(recipe, "generation")
    wanted = order(settle(recipe, "evaluation"), args.captions, adapter, merge=args.merge)
    for row in wanted.rejected:
        print(f"rejected: {row.reason}")
    summary = produce(wanted, absolute(args.out))
    print(
        f"{args.out}: {summary['clips']} clips ({summary['new_clips']} new) of {summary['captions']} captions in "
        f"{summary['seconds']:.0f} s; {summary['rejected']} entries rejected, {summary['repeated']} repeated, "
        f"{summary['failed']} clips failed"
    )
    print(f"Index: {summary['index']}")


if __name__ == "__main__":
    parser = command.recipe_arguments(__doc__ or "")
    parser.add_argument(
        "--captions", required=True, type=argument, metavar="FILE", help="list of captions, see docs/generation.md"
    )
    parser.add_argument(
        "--adapter", type=argument, metavar="DIR", help="a trained adapter (default: the model as it is)"
    )
    parser.add_argument("--merge", action="store_true", help="add the adapter to the weights ahead of generation")
    parser.add_argument("--out", required=True, type=argument, metavar="DIR", help="folder or cloud URI for the clips")
    command.run(main, parser)
