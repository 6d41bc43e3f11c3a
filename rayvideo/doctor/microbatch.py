"""One step of the recipe's own trainer, on one process, without DeepSpeed and without an update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import ray
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn

from rayvideo.data.table import LatentTable
from rayvideo.doctor import context, thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.models.lora import lora_parameters
from rayvideo.recipe import Recipe
from rayvideo.sections import Workers
from rayvideo.serving.pool import RewardPool
from rayvideo.training import objectives
from rayvideo.training.assembly import assemble
from rayvideo.training.engine import Update
from rayvideo.training.objective import Objective

LOSS_SCALE = 2.0**16  # DeepSpeed's first one for fp16
RESET_PEAK = Path("/proc/self/clear_refs")
GIB = 2**30


class PlainEngine:
    """An `Engine` of plain gradients, which stay where they are."""

    def __init__(self, denoiser: nn.Module, loss_scale: float) -> None:
        self.denoiser = denoiser
        self._scale = loss_scale

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`."""
        (self._scale * loss).backward()

    def step(self, lr: float) -> Update:
        """Undo the scale; nothing is updated."""
        gradients = [p.grad.div_(self._scale) for p in lora_parameters(self.denoiser).values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        return Update(norm, True)


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with one worker and one optimizer step of two micro-batches at most: two graphs are alive at once."""
    options = recipe.training
    objective = objectives.resolve(options.objective)
    alone = objective.compares_samples and options.batch_size == 1
    accumulation = 2 if alone else min(2, options.accumulation)
    changes = {
        "workers": Workers(min=1, max=1),
        "accumulation": accumulation,
        "samples_per_caption": math.gcd(options.samples_per_caption, accumulation * options.batch_size),
    }
    return recipe.model_copy(update={"training": options.model_copy(update=changes)})


def examine(recipe: Recipe, table: LatentTable, pool: RewardPool, device: torch.device) -> Iterator[Finding]:
    """Run the step; what it says of saturation, of the adapter's gradient, and of memory."""
    recipe = shortened(recipe)
    dtype = recipe.training.precision

    def make_engine(adapted: PeftModel, objective: Objective[Any]) -> PlainEngine:
        return PlainEngine(adapted.to(device), LOSS_SCALE if dtype == "fp16" else 1.0)

    with _alone(device):
        built = assemble(recipe, table, pool, device, make_engine)
        built.objective.update_count = 1  # nothing is updated: more would be the same again
        before = _start_memory(device)
        try:
            values = built.trainer.step(1)
        except torch.cuda.OutOfMemoryError as error:
            yield Finding("memory", False, str(error).splitlines()[0], MEMORY_MEND)
            return
        peak = _peak_memory(device)
    yield saturation(values["saturation"], recipe.reward.clamp)
    yield adapter_gradient({name: p.grad for name, p in lora_parameters(built.adapted).items()})
    micro_batches = f"{recipe.training.accumulation} micro-batch{'es' * (recipe.training.accumulation > 1)}"
    what = f"{micro_batches} of {recipe.training.batch_size} clips, {values['seconds/step']:.1f} s"
    yield memory(before, peak, device, what)
    yield context.examine(recipe, table, built.model)


def saturation(share: float, clamp: str) -> Finding:
    """Share of decoded pixel values that lie outside [0, 1]."""
    return Finding(
        "saturation",
        share <= thresholds.SATURATED,
        f"{share:.2%} of decoded pixel values lie outside [0, 1]; reward.clamp {clamp}",
        "the model makes pixels that can't be shown: is the VAE this model's own, is editing.guidance too high?",
    )


def adapter_gradient(gradients: Mapping[str, Tensor | None]) -> Finding:
    """The gradient that reaches the adapter's matrices (name -> gradient), by target layer and matrix."""
    name = "gradient reaching LoRA"
    lost = [weight for weight, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    if lost:
        mend = (
            "the graph from the loss to these matrices is cut, or overflows: see training.precision, model.lora.targets"
        )
        return Finding(name, False, f"none, NaN or Inf in {len(lost)} of {len(gradients)} matrices, as {lost[0]}", mend)
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for weight, gradient in gradients.items():
        layer, _, matrix = weight.removesuffix(".weight").removesuffix(".default").rpartition(".lora_")
        groups[f"{matrix} {_target(layer)}"][weight] = cast(Tensor, gradient)
    norms = {group: torch.stack([g.float().norm() for g in own.values()]) for group, own in groups.items()}
    second = [group for group in norms if group.startswith("B ")]
    told = ", ".join(f"{group.removeprefix('B ')} {norms[group].norm():.2g}" for group in second)
    born = sum(len(norms[group]) for group in norms if group.startswith("A "))
    measured = f"B: {told}; A: exactly 0 in {born} matrices, as it must be while B = 0"
    if any(norms[group].any() for group in norms if group.startswith("A ")):
        measured = f"B: {told}; A: not 0"
    silent = [weight for group in second for weight, norm in zip(groups[group], norms[group], strict=True) if norm == 0]
    return Finding(
        name,
        not silent,
        f"exactly 0 in {len(silent)} B matrices, as {silent[0]}; {measured}" if silent else measured,
        "these layers learn nothing: leave them out of model.lora.targets; if it is all, see the judge's gradient",
    )


MEMORY_MEND = (
    "lower training.batch_size and raise training.accumulation to match; or model.checkpointing=both, a lower "
    "training.precision, fewer reward.segments or data.frames"
)


def memory(before: int, peak: int | None, device: torch.device, what: str) -> Finding:
    """Bytes before the step and at its peak, against what this device, or on CPU this machine, has."""
    if peak is None:
        return Finding("memory", None, f"{what}; this system does not tell a process's peak memory")
    room, where = _room(device)
    return Finding(
        "memory",
        peak <= thresholds.MEMORY * room,
        f"{what}: {peak / GIB:.2f} GiB at the peak, {(peak - before) / GIB:.2f} of them for the step; {where} "
        f"{room / GIB:.0f} GiB",
        MEMORY_MEND,
    )


def _target(layer: str) -> str:
    """ "to_out.0" of "…attn1.to_out.0": the last name, with the number that may follow it."""
    *_, before, last = layer.split(".")
    return f"{before}.{last}" if last.isdigit() else last


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """A process group of one, for trainers that compare all workers' samples."""
    with TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _start_memory(device: torch.device) -> int:
    """Bytes that are in use, and a fresh start for the peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if RESET_PEAK.exists():
        RESET_PEAK.write_text("5")
    return _resident("VmRSS") or 0


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def _resident(which: str) -> int | None:
    """Bytes by /proc, which Linux has alone."""
    if not RESET_PEAK.exists():
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


def _room(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        return total - others, f"{torch.cuda.get_device_name(device)} has, beside what others hold,"
    node = ray.get_runtime_context().get_node_id()
    counted = next(one["Resources"]["memory"] for one in ray.nodes() if one["NodeID"] == node)
    return int(counted), "Ray counts on this machine"
