"""Fine-tune a recipe with several values of its options, and find which do best by a judge that training never sees.

    python jobs/sweep.py --recipe R tracking.run_name=lr --vary training.lr=[1e-4,3e-4] editing.strength=[0.4,0.6]
    python jobs/sweep.py --recipe R --sweep S.yaml tracking.run_name=wide training.steps=200 --concurrent 4
    python jobs/sweep.py --recipe R tracking.run_name=lr --vary training.lr=[1e-4,3e-4] --dry-run

`key=value` changes the recipe of all trials, `--vary` that of each. Trials are runs as jobs/finetune.py makes them,
below the sweep's own run in MLflow; those that fall behind are ended early. The same command again goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from rayvideo.importing import quickly

with quickly():
    from rich.console import Console
    from rich.table import Table

    from rayvideo import command, own_modules
    from rayvideo.connection import start_ray
    from rayvideo.paths import argument
    from rayvideo.planning.refuse import refuse_too_large
    from rayvideo.sweep.options import load_sweep
    from rayvideo.sweep.run import best, outcomes, plan, run
    from rayvideo.tracking import tracking_uri, ui_command
    from rayvideo.training import preflight
    from rayvideo.training.launch import parts_of

LOG_WIDTH = 120  # columns of the table where no terminal says otherwise


def main(args: argparse.Namespace) -> None:
    sweep = load_sweep(args.sweep, args.vary, samples=args.samples, concurrent=args.concurrent)
    shared, trials = plan(args.recipe, args.overrides, sweep)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    if args.dry_run:
        console.print(table(outcomes(trials)))
        return
    own_modules.make_importable(shared, args.recipe)
    command.refuse_lost({"storage": shared.storage})
    preflight.check(trials[0].recipe)
    start_ray(shared, *parts_of(shared))
    refuse_too_large(shared)
    found = run(shared, trials, sweep, args.overrides)
    console.print(table(found))
    for one in found:
        if "error" in one:
            console.print(f"{one['name']} failed: {one['error']}", soft_wrap=True, markup=False, highlight=False)
    if chosen := best(found):
        typed = shlex.join([*args.overrides, *chosen["changes"], f"tracking.run_name={chosen['name']}"])
        print(f"Best: {chosen['name']}. Against the base: python jobs/evaluate.py --recipe {args.recipe} {typed}")
    print(f"MLflow: {ui_command(tracking_uri(shared))}")


def table(found: list[dict[str, Any]]) -> Table:
    """The trials as a table."""
    keys = [change.partition("=")[0] for change in found[0]["changes"]]
    shown = Table("trial", *keys, "state", "step", "held out")
    for one in found:
        values = [change.partition("=")[2] for change in one["changes"]]
        score = "" if one["score"] is None else f"{one['score']:.4f}"
        shown.add_row(one["name"], *values, one["status"], str(one["step"] or ""), score)
    return shown


if __name__ == "__main__":
    parser = command.recipe_arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sweep", type=argument, metavar="FILE", help="YAML with vary and more, see docs/sweeps.md")
    values = "[a,b] or {min: a, max: b, log: true}"
    parser.add_argument("--vary", nargs="+", action="extend", default=[], metavar="key=VALUES", help=values)
    parser.add_argument("--samples", type=int, metavar="N", help="trials of each combination (default: 1)")
    parser.add_argument("--concurrent", type=int, metavar="N", help="trials that run at once (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the trials, and start nothing")
    command.run(main, parser)
