"""Compare runs on one page: clips side by side, paired differences, curves, recipes, and a blind vote.

    python jobs/compare.py first second
    python jobs/compare.py first:base first runs/elsewhere "params.training.lr = '0.0001'"
    python jobs/compare.py --votes votes-*.json

A RUN is a folder that jobs/evaluate.py wrote to, a name under the storage, an MLflow run id, or an MLflow query; behind
any of them `:base` means the model without its adapter. Writes one HTML file, and adds it to the runs in MLflow.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rayvideo import command
from rayvideo.evaluation import EvaluationError
from rayvideo.evaluation.captions import slug
from rayvideo.evaluation.comparison.choose import choose
from rayvideo.evaluation.comparison.differences import differences
from rayvideo.evaluation.comparison.page import page
from rayvideo.evaluation.comparison.pairing import shared
from rayvideo.evaluation.comparison.runs import Run, read_run
from rayvideo.evaluation.comparison.table import print_differences
from rayvideo.evaluation.comparison.votes import check_votes, read_votes, win_rates
from rayvideo.paths import argument
from rayvideo.storage import join, write_bytes
from rayvideo.tracking import TrackingError, attach

logger = logging.getLogger(__name__)

LOG_WIDTH = 120  # columns of the tables where no terminal says otherwise


def main(args: argparse.Namespace) -> None:
    command.refuse_lost({"--storage": args.storage, "--out": args.out})
    votes = {file: read_votes(file) for file in args.votes}
    words = args.runs or list(dict.fromkeys(word for each in votes.values() for word in each.runs.values()))
    if not words:
        raise EvaluationError("which runs? Name two or more, or --votes FILE for those that a file of votes names")
    runs = [read_run(label, side) for label, side in choose(words, args.storage).items()]
    keys = shared(runs)
    for file, given in votes.items():
        check_votes(file, given, runs)
    rates = win_rates(runs, [vote for given in votes.values() for vote in given.votes])
    groups = differences(runs, keys)
    out = args.out or join(join(args.storage, "comparisons"), f"{slug(' '.join(run.label for run in runs))}.html")
    content = page(runs, keys, groups, rates, args.seed).encode()
    write_bytes(out, content)
    _log(runs, content, Path(out).name)

    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    print_differences(runs, groups, console)
    for line in (*map(str, rates), f"Page: {out}"):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _log(runs: list[Run], content: bytes, name: str) -> None:
    """Add the page to each run in MLflow. Runs outlive their database; the page is there without it."""
    with TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        for ref in dict.fromkeys(run.ref for run in runs):
            try:
                attach(ref, file, "comparisons")
            except TrackingError as error:
                logger.warning("the page is not in MLflow: %s", error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="what to compare, the one to compare with first")
    parser.add_argument(
        "--votes", nargs="+", action="extend", type=argument, default=[], metavar="FILE", help="votes saved on the page"
    )
    parser.add_argument(
        "--storage", type=argument, default="runs", metavar="DIR", help="where named runs lie (default: runs)"
    )
    parser.add_argument("--out", type=argument, metavar="FILE", help="default: <storage>/comparisons/<names>.html")
    parser.add_argument("--seed", type=int, default=0, help="of the blind vote's order and sides")
    command.run(main, parser)
