"""The whole way on one recipe: prepare, fine-tune, evaluate. Each is the job of that name, run as it is printed.

    python jobs/demo.py --recipe jobs/recipes/menagerie-demo.yaml tracking.run_name=demo

They share a process and its Ray, whose start takes longer than some of the work. Latents go to <storage>/<run>-latents.
"""

from __future__ import annotations

import argparse
import runpy
import shlex
import sys
from pathlib import Path

from rayvideo.importing import quickly

with quickly():
    from rayvideo import command, own_modules
    from rayvideo.connection import start_ray
    from rayvideo.recipe import load_recipe
    from rayvideo.runs.folder import named
    from rayvideo.storage import join

HERE = Path(__file__).parent


def main(args: argparse.Namespace) -> None:
    overrides = list(args.overrides)
    recipe = load_recipe(args.recipe, overrides)
    if recipe.tracking.run_name is None:
        recipe = named(recipe)
        overrides.append(f"tracking.run_name={recipe.tracking.run_name}")
    latents = join(recipe.storage, f"{recipe.tracking.run_name}-latents")
    given = ["--recipe", args.recipe, *overrides]
    own_modules.make_importable(recipe, args.recipe)
    start_ray(recipe)
    job("prepare", *given, "--out", latents)
    job("finetune", *given, "data.manifest=null", f"data.prepared={latents}")
    job("evaluate", *given)


def job(name: str, *words: str) -> None:
    """Run jobs/`name`.py as its command line would."""
    sys.argv = [str(HERE / f"{name}.py"), *words]
    print(f"\n$ python jobs/{name}.py {shlex.join(words)}", flush=True)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    command.run(main, command.recipe_arguments(__doc__ or ""))
