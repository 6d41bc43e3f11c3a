"""`rayvideo doctor` from recipe to table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import ray
from rich.console import Console

from rayvideo import own_modules
from rayvideo.command import start_ray
from rayvideo.doctor.examine import examine
from rayvideo.doctor.show import print_table, summary, write_json
from rayvideo.recipe import load_recipe
from rayvideo.training import preflight

LOG_WIDTH = 140  # columns of the table where no terminal says otherwise


def run(file: str, overrides: Sequence[str] = (), json: str | None = None) -> bool:
    """Examine a recipe, print what was found, and return whether nothing failed.

    Raises:
        UserError: the recipe, its files, its clips or its model can't be read.
    """
    started = time.monotonic()
    recipe = load_recipe(file, overrides)
    own_modules.make_importable(recipe, file)
    preflight.check(recipe)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    try:
        with console.status("starting Ray") as status:
            start_ray(recipe)
            findings = examine(recipe, lambda text: status.update(text))
    finally:
        ray.shutdown()
    seconds = time.monotonic() - started
    print_table(findings, console)
    console.print(f"\n{summary(findings, seconds)}", highlight=False)
    if json:
        write_json(findings, seconds, json)
    return all(finding.ok is not False for finding in findings)
