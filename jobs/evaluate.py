"""Compare base and tuned model on the same captions and seeds: judge, measure, and look at the clips.

    python jobs/evaluate.py --recipe jobs/recipes/menagerie.yaml tracking.run_name=first
    python jobs/evaluate.py --recipe R --adapter DIR --captions new=new.txt non=non.txt --out DIR

Writes report/index.html, clips.parquet and summary.json into the run folder (or --out), and logs to the run's MLflow.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rayvideo.importing import quickly

with quickly():
    from rayvideo import command, own_modules
    from rayvideo.connection import start_ray
    from rayvideo.evaluation import EvaluationError
    from rayvideo.evaluation.compare import check, evaluate
    from rayvideo.evaluation.findings import print_table
    from rayvideo.evaluation.guarding.rows import Row
    from rayvideo.evaluation.publish import publish, track
    from rayvideo.evaluation.report import write_report
    from rayvideo.paths import argument
    from rayvideo.recipe import Recipe, load_recipe, parse_recipe
    from rayvideo.settling import settle
    from rayvideo.storage import absolute, is_file, join, read_bytes, read_lines, read_summary
    from rayvideo.tracking import Tracker, commit, create_run, find_run, open_experiment, run_url, ui_command, versions

logger = logging.getLogger(__name__)

LOG_WIDTH = 120  # columns of the table where no terminal says otherwise


def main(args: argparse.Namespace) -> None:
    sets, overrides = _split(args.captions)
    recipe = load_recipe(args.recipe, [*args.overrides, *overrides])
    if sets:
        tree = recipe.model_dump(mode="json")
        recipe = parse_recipe(tree | {"evaluation": tree["evaluation"] | {"sets": sets}})
    own_modules.make_importable(recipe, args.recipe)
    command.refuse_lost({"storage": recipe.storage, "--out": args.out})
    run_folder = join(absolute(recipe.storage), recipe.tracking.run_name) if recipe.tracking.run_name else None
    out = absolute(args.out) if args.out else run_folder
    adapter = absolute(args.adapter) if args.adapter else run_folder and join(run_folder, "adapter")
    if out is None or (adapter is None and not args.base_only):
        raise EvaluationError(
            "which run? Set tracking.run_name=NAME, or give --out DIR with --adapter DIR or --base-only"
        )
    if args.base_only:
        adapter = None
    check(recipe, adapter)
    trained = read_summary(run_folder) if run_folder else {}
    tuning = find_run(recipe, trained["mlflow"]["run_id"]) if trained.get("mlflow") else None
    if tuning is None:
        open_experiment(recipe)  # refuses where it can't log, before Ray starts

    start_ray(recipe, "generation", "judges", "held_out")
    recipe = settle(recipe, "evaluation")
    ref = tuning or create_run(recipe, out, args.overrides)
    # The run of the fine-tuning is closed already; one of our own ends with us.
    with nullcontext(Tracker(ref)) if tuning else Tracker(ref) as tracker, TemporaryDirectory() as folder:
        work = Path(folder)
        comparison = evaluate(recipe, adapter, work)
        logger.info("writing the report")
        metrics = join(run_folder, "metrics.jsonl") if run_folder else ""
        curve = read_bytes(metrics).decode() if is_file(metrics) else None
        guards = [Row.of(line) for line in read_lines(join(run_folder, "guards.jsonl"))] if run_folder else []
        write_report(work, recipe, comparison, _facts(recipe, adapter, tracker), curve, guards)
        summary = publish(recipe, comparison, adapter, work, out, tracker)
        product = trained.get("verdict") or {"step": trained.get("steps", 0)}
        track(recipe, comparison, work, tracker, step=product["step"])

    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    print_table(recipe, comparison, console)
    if "outcome" in summary:
        found = summary["outcome"]
        console.print(f"Verdict: {found['kind']}. {found['reason']}", soft_wrap=True, markup=False, style="bold")
    console.print(f"Report: {summary['evaluation']['report']}", soft_wrap=True, markup=False)
    console.print(f"MLflow: {ui_command(ref.uri)}", soft_wrap=True, markup=False)
    console.print(f"        {run_url(ref)}", soft_wrap=True, markup=False)


def _facts(recipe: Recipe, adapter: str | None, tracker: Tracker) -> dict[str, str]:
    """What the report's head says."""
    steps = " and ".join(map(str, recipe.evaluation.steps))
    return {
        "model": recipe.model.path,
        "adapter": adapter or "none",
        "chain": f"{steps} denoising steps, guidance {recipe.evaluation.guidance:g}",
        "MLflow run": tracker.ref.run_id,
        **commit(),
        **{name.removeprefix("version."): number for name, number in versions().items()},
    }


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """NAME=FILE words as caption sets; an override that follows them on the command line is told by its section."""
    sets, overrides = {}, []
    for word in words:
        name, equals, file = word.partition("=")
        if name.partition(".")[0] in Recipe.model_fields:
            overrides.append(word)
        elif not equals or not name or not file:
            raise EvaluationError(f"--captions {word!r} is not of the form NAME=FILE")
        else:
            sets[name] = file
    return sets, overrides


if __name__ == "__main__":
    parser = command.recipe_arguments(__doc__ or "")
    parser.add_argument(
        "--captions",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="caption sets (default: recipe's)",
    )
    parser.add_argument(
        "--adapter", type=argument, metavar="DIR", help="default: the adapter in the folder of tracking.run_name"
    )
    parser.add_argument("--base-only", action="store_true", help="evaluate the model without an adapter")
    parser.add_argument("--out", type=argument, metavar="DIR", help="default: the folder of tracking.run_name")
    command.run(main, parser)
