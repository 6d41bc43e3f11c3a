"""A run that is hurt every few seconds, against the same run left alone.

    python benchmarks/soak.py --minutes 20 --every 20 --seed 0

Trains a small recipe through jobs/finetune.py (two workers, ZeRO-2, fp32, CPU), twice. The second time it is hurt
again and again: SIGKILL to a train worker, to a judge, to the judges' router, to the driver; SIGTERM to the driver;
SIGKILL to the driver and the newest checkpoint cut off. After a fault it waits until the run has made a new optimizer
step, then `--every` seconds more: so each fault meets a run at work. Where the driver is gone, `--resume` follows.

Only processes that descend from the drivers it starts are hurt, told by the titles that Ray gives them. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from rayvideo.menagerie.clips import training_scenes, write_clips
from rayvideo.paths import path_argument
from rayvideo.tracking.charts import step_chart

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "jobs/recipes/menagerie-demo.yaml"
# What Ray calls the processes; the judges' class and their router are those of rayvideo/serving.
TITLES = {"worker": "TrainWorker", "judge": "RewardActor", "router": "Router"}
FAULTS = (*TITLES, "driver", "preemption", "checkpoint")
POLL_S = 0.1
GRACE_S = 120
STUCK_S = 600  # without a new step: the run counts as lost
CLIPS = 24


@dataclass
class Fault:
    """One thing that was done to the run."""

    kind: str
    at: float
    """Seconds after the first driver's start."""
    step: int
    """Newest step in metrics.jsonl then."""
    recovered_s: float | None = None
    """Seconds until a step was logged that did not stand there when the fault came."""


@dataclass
class Story:
    """What happened to a run."""

    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    steps_lost: int = 0
    """Steps that were done and had to be done again."""
    starts: int = 0
    exits: list[int] = field(default_factory=list)
    finished: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="for both runs; the last tenth is without faults")
    parser.add_argument("--every", type=float, default=20, help="seconds of progress between two faults")
    parser.add_argument("--seed", type=int, default=0, help="of the order of faults and of the victims")
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps of each run")
    parser.add_argument("--checkpoint-every", type=int, default=5, help="steps")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--out", type=path_argument, required=True, help="folder for clips, runs and logs")
    arguments = parser.parse_args()
    recipe = prepared_recipe(arguments)
    until = time.monotonic() + 60 * arguments.minutes
    calm = watch(arguments, recipe, "calm", [], until)
    if not calm.finished:
        raise SystemExit(
            f"the undisturbed run did not finish, see {arguments.out / 'calm.log'}; give it more --minutes"
        )
    hurt = watch(arguments, recipe, "hurt", list(arguments.faults), until)
    print(report(arguments, calm, hurt))


def prepared_recipe(arguments: argparse.Namespace) -> Path:
    """A recipe beside its clips, encoded once, so that a restart costs no decoding."""
    out = arguments.out.absolute()
    listing = write_clips(out / "clips", training_scenes(CLIPS, 0), 0.8)
    tree = yaml.safe_load(RECIPE.read_text())
    tree["data"] |= {"manifest": str(listing), "frames": 8}
    tree["editing"] |= {"steps": 5, "grad_steps": 1}
    tree["training"] |= {
        "steps": arguments.steps,
        "workers": 2,
        "batch_size": 1,
        "precision": "fp32",
        "zero_stage": 2,
        "checkpoint_every": arguments.checkpoint_every,
        "max_failures": 1000,
    }
    tree |= {"evaluation": {}, "storage": str(out)}
    first, recipe = out / "prepare.yaml", out / "recipe.yaml"
    first.write_text(yaml.safe_dump(tree))
    if not summary_of(out / "latents").get("finished"):
        with (out / "prepare.log").open("w") as log:
            command = [sys.executable, "jobs/prepare.py", "--recipe", str(first), "--out", str(out / "latents")]
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    tree["data"] |= {"manifest": None, "prepared": str(out / "latents")}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def watch(arguments: argparse.Namespace, recipe: Path, name: str, kinds: list[str], until: float) -> Story:
    """Start the run of this name, do the faults to it, resume it wherever its driver is gone, until it is finished."""
    story, rng = Story(), random.Random(arguments.seed)
    folder = arguments.out.absolute() / name
    order = endless(kinds, rng)
    started = time.monotonic()
    last_fault = started + 0.9 * (until - started)
    driver = start(arguments, recipe, name, story)
    newest, moved = 0, started
    at_work: float | None = None  # since when there are new steps again
    while True:
        time.sleep(POLL_S)
        now, step = time.monotonic(), last_step(folder)
        story.steps_lost += max(0, newest - step)
        if step > newest:
            moved = now
            if at_work is None:
                at_work = now
                if story.faults:
                    story.faults[-1].recovered_s = now - started - story.faults[-1].at
        newest = step
        if (code := driver.poll()) is not None:
            story.exits.append(code)
            if code == 0:
                break
            # A driver that died before it took the run folder, such as of a Ray that did not come up, has no run yet.
            driver = start(arguments, recipe, name, story, *(["--resume"] if (folder / "recipe.yaml").exists() else []))
        if now - moved > STUCK_S or now > until + STUCK_S:
            end(driver, signal.SIGKILL)
            break
        ripe = at_work is not None and now - at_work > arguments.every and newest < arguments.steps
        if kinds and ripe and now < last_fault and len(checkpoints(folder)) > 1:
            fault = Fault(next(order), now - started, newest)
            if hurt(fault.kind, driver, folder, rng):
                story.faults.append(fault)
                at_work = None
                print(f"{fault.at:6.0f} s, step {newest:4d}: {fault.kind}", file=sys.stderr, flush=True)
    story.seconds = time.monotonic() - started
    story.finished = summary_of(folder).get("finished", False)
    return story


def endless(kinds: list[str], rng: random.Random) -> Iterator[str]:
    """All kinds in a random order, then in another, and so on: each gets its share however short the soak is."""
    while kinds:
        yield from rng.sample(kinds, len(kinds))


def start(arguments: argparse.Namespace, recipe: Path, name: str, story: Story, *more: str) -> subprocess.Popen[bytes]:
    story.starts += 1
    command = [sys.executable, "jobs/finetune.py", "--recipe", str(recipe), f"tracking.run_name={name}", *more]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (arguments.out / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)


def hurt(kind: str, driver: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> bool:
    """Do one fault; whether there was anything to do it to."""
    if kind in TITLES:
        victims = [process for process in descendants(driver) if TITLES[kind] in title(process)]
        if not victims:
            return False
        rng.choice(sorted(victims, key=lambda process: process.pid)).kill()
        return True
    end(driver, signal.SIGTERM if kind == "preemption" else signal.SIGKILL)
    if kind == "checkpoint":
        files = sorted(path for path in checkpoints(folder)[-1].rglob("*") if path.is_file() and path.stat().st_size)
        victim = rng.choice(files)
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    return True


def end(driver: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Signal the driver and wait until it and all that it started are gone."""
    family = descendants(driver)
    driver.send_signal(how)
    try:
        driver.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
    for left in psutil.wait_procs(family, timeout=10)[1]:
        left.kill()


def descendants(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def checkpoints(folder: Path) -> list[Path]:
    """Folders of checkpoints by step; the newest may not be whole yet."""
    return sorted(path for path in (folder / "checkpoints").glob("step-*") if path.is_dir())


def lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    try:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return []


def last_step(folder: Path) -> int:
    found = lines(folder)
    return found[-1]["step"] if found else 0


def summary_of(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def report(arguments: argparse.Namespace, calm: Story, hurt: Story) -> str:
    one, other = (arguments.out.absolute() / name for name in ("calm", "hurt"))
    took = {kind: [fault.recovered_s for fault in hurt.faults if fault.kind == kind] for kind in arguments.faults}
    rows = [
        f"| {kind} | {len(times)} | {sum(t is not None for t in times)} | {_middle(times)} |"
        for kind, times in took.items()
    ]
    done = max(last_step(other), 1)
    rest = [
        ("steps", f"{last_step(one)} and {last_step(other)} of {arguments.steps}"),
        ("both finished", calm.finished and hurt.finished),
        ("steps done again", f"{hurt.steps_lost} ({hurt.steps_lost / done:.0%} of those that counted)"),
        ("steps that counted, per fault", f"{done / max(len(hurt.faults), 1):.1f}"),
        ("seconds, undisturbed / disturbed", f"{calm.seconds:.0f} / {hurt.seconds:.0f}"),
        ("seconds lost per fault", f"{(hurt.seconds - calm.seconds) / max(len(hurt.faults), 1):.0f}"),
        ("drivers started, their exit codes", f"{hurt.starts}, {dict(Counter(hurt.exits))}"),
        ("adapter", difference(tensors(one / "adapter"), tensors(other / "adapter"))),
        ("optimizer's state and fp32 weights", difference(optimizer(one), optimizer(other))),
        ("same values in every step", same_steps(lines(one), lines(other))),
        ("MLflow", mlflow_says(arguments)),
    ]
    load = f"load {os.getloadavg()[2]:.0f} on {os.cpu_count()} cores"
    head = f"`python benchmarks/soak.py {' '.join(sys.argv[1:])}`, {load}\n"
    table = [
        "| fault | injected | recovered | seconds until the next step, median (most) |",
        "|---|---|---|---|",
        *rows,
    ]
    facts = ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rest)]
    return "\n".join([head, *table, *facts])


def _middle(times: list[float | None]) -> str:
    known = [t for t in times if t is not None]
    return f"{statistics.median(known):.0f} ({max(known):.0f})" if known else "–"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    return load_file(file) if file.is_file() else {}


def optimizer(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in DeepSpeed's files of the newest checkpoint, by file and place."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(file for newest in checkpoints(folder)[-1:] for file in newest.rglob("*optim_states.pt")):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        types = [getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
        if not all(name.startswith("deepspeed.") for name in names):
            raise SystemExit(f"{file} holds more than DeepSpeed's types: {names}")
        with torch.serialization.safe_globals(types):
            found |= leaves(torch.load(file, weights_only=True)["optimizer_state_dict"], file.name)
    return found


def leaves(tree: Any, name: str) -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    if not isinstance(tree, dict | list | tuple):
        return {}
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {place: leaf for key, value in inner for place, leaf in leaves(value, f"{name}.{key}").items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    if not one or one.keys() != other.keys():
        return f"{len(one)} and {len(other)} tensors: not the same ones"
    largest = max((one[name].double() - other[name].double()).abs().max().item() for name in one if one[name].numel())
    equal = all(torch.equal(one[name], other[name]) for name in one)
    return f"{len(one)} tensors, " + ("bit-equal" if equal else f"largest difference {largest:.1e}")


def same_steps(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Steps with equal reward, scores, loss, gradient norm and, where they are listed, clips: another clip, or another
    noise, would give other numbers."""

    def values(line: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in line.items() if not key.startswith(("seconds", "wait"))}

    pairs = list(zip(one, other, strict=False))
    equal = sum(values(a) == values(b) for a, b in pairs)
    return f"{equal} of {max(len(one), len(other))}"


def mlflow_says(arguments: argparse.Namespace) -> str:
    client = MlflowClient(f"sqlite:///{arguments.out.absolute() / 'mlflow.db'}")
    found = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
        if run.info.run_name == "hurt"
    ]
    if len(found) != 1:
        return f"{len(found)} runs"
    steps = Counter(point.step for point in client.get_metric_history(found[0].info.run_id, step_chart("reward")))
    gaps = sorted(set(range(1, arguments.steps + 1)) - steps.keys())
    twice = sum(count > 1 for count in steps.values())
    return f"1 run, {found[0].info.status}, {len(steps)} steps, {len(gaps)} gaps, {twice} steps logged more than once"


if __name__ == "__main__":
    main()
