"""DeepSpeed behind one class: the denoiser's adapter is optimised here, and nowhere else is DeepSpeed named."""

from __future__ import annotations

import logging
import math
import os
import sys
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayvideo.errors import RecipeError
from rayvideo.models.lora import lora_parameters, save_adapter, unwrap
from rayvideo.sections import Training
from rayvideo.training.engine import Update

# Ray hides the GPUs of a node from workers that reserve none; DeepSpeed decides once, at import.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.checkpoint import ds_to_universal  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# On CPU the first start compiles a shared-memory all-reduce for half a minute; gloo does without.
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
# To see whether it knows the optimizer, DeepSpeed imports Muon, which imports torch's compiler for seconds.
sys.modules["deepspeed.runtime.engine"].is_zero_supported_optimizer = lambda _: True  # type: ignore[attr-defined]

TAG = "ds"
PERSISTENT = 100_000
"""Numbers of a weight that ZeRO-3 leaves whole on each worker, at most: DeepSpeed's own default."""
MEAN = "exp_avg"
"""What AdamW calls its running mean of a gradient."""


class DeepSpeedEngine:
    """Owns the DeepSpeed engine around a denoiser whose adapter is its only trainable part.

    fp32 and bf16 denoisers carry fp32 adapters, which are their own master weights. For fp16 DeepSpeed scales the loss
    and keeps fp32 masters of an fp16 adapter.

    Args:
        denoiser: With a fresh or loaded adapter, on the CPU. It is moved to the device, in place; with ZeRO-3 weight by
            weight, of each of which this worker keeps its share alone.
        options: The recipe's training section.
        passes: Backward passes that each micro-batch takes; gradients are averaged over them.
        universal: Whether `load` will read what another number of workers wrote, which DeepSpeed wants to know first.

    All workers take part in every call but `save_adapter`. An initialised `torch.distributed` process group is needed.

    Raises:
        RecipeError: fp16 on a device that lacks it; as many workers as can't share the global batch.
    """

    def __init__(self, denoiser: nn.Module, options: Training, passes: int = 1, *, universal: bool = False) -> None:
        if options.precision == "fp16" and not supports_fp16():
            raise RecipeError("training.precision 'fp16': this machine can't compute it; allowed here: 'fp32', 'bf16'")
        self._options = options
        parameters = list(lora_parameters(denoiser).values())
        self._optimizer = torch.optim.AdamW(
            parameters, lr=options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
        )
        sizes = [parameter.numel() for parameter in parameters]
        config = deepspeed_config(options, sum(sizes), passes, dist.get_world_size(), largest=max(sizes))
        # Shards of another number of workers are converted. Stage 0 has none: each worker has everything.
        self._universal = universal and options.zero_stage > 0
        config["checkpoint"] = {"load_universal": self._universal}
        if options.zero_stage == 3:
            _partition(denoiser, options, config)
        self._engine, *_ = deepspeed.initialize(
            model=denoiser, optimizer=self._optimizer, config=config, dist_init_required=False
        )
        self._engine.eval()  # no dropout in the rollout

    @property
    def denoiser(self) -> nn.Module:
        """What a `VideoModel` calls in the denoiser's place."""
        return self._engine

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one pass over a micro-batch; the workers' gradients are averaged."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch

    def step(self, lr: float) -> Update:
        """Update the adapter after all passes over `accumulation` micro-batches, and forget their gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        own_norm = _norm(self._engine) if self._options.zero_stage == 0 else None
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm() if own_norm is None else own_norm)
        return Update(norm, True) if math.isfinite(norm) else Update(0.0, False)

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's fp32 weights by name, on the CPU. Every worker must ask, because ZeRO-3 gathers them."""
        weights = {}
        for name, weight in lora_parameters(unwrap(self._engine)).items():
            master = safe_get_full_fp32_param(weight)
            weights[name] = (weight if master is None else master).detach().float().cpu()
        return weights

    def gradients(self) -> dict[str, Tensor]:
        """AdamW's running means of the adapter's gradients by name, on the CPU: 0 where none has come so far.

        Every worker must ask after an update, because ZeRO gathers them.
        """
        means = {}
        for name, weight in lora_parameters(unwrap(self._engine)).items():
            mean = safe_get_full_optimizer_state(weight, MEAN)
            if mean is None:  # stage 0, where a weight that never had a gradient has no mean either
                mean = self._optimizer.state[weight].get(MEAN, torch.zeros_like(weight))
            means[name] = mean.detach().float().cpu()
        return means

    def save_adapter(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write what `adapter` returned in PEFT's format; one worker does."""
        save_adapter(self._engine, folder, weights)

    def save(self, folder: Path) -> None:
        """Write this worker's share of optimizer and adapter state into `folder`."""
        self._engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Continue from what all workers, however many there were, have written into `folder`, which stays as it is.

        DeepSpeed reads these files with pickle: load only what you trust.
        """
        if not self._universal:
            self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
            return
        with TemporaryDirectory() as own:
            universal = _node_wide(own)
            if universal == own:
                _convert(folder / TAG, Path(own, TAG))
            dist.barrier()
            self._engine.load_checkpoint(universal, tag=TAG, load_module_strict=False)
            dist.barrier()

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the denoiser."""
        self._engine.destroy()


def supports_fp16() -> bool:
    """Whether DeepSpeed trains in fp16 on this process's device; many CPUs can't."""
    return bool(get_accelerator().is_fp16_supported())


def deepspeed_config(
    options: Training, trainable: int, passes: int = 1, workers: int = 1, *, largest: int = 0
) -> dict[str, Any]:
    """DeepSpeed's configuration for the recipe's options.

    Args:
        trainable: Numbers of the adapter, and
        largest: of its largest matrix.
        passes: `Engine`'s.
    """
    return {
        "train_micro_batch_size_per_gpu": options.batch_size,
        "gradient_accumulation_steps": options.accumulation_of(workers) * passes,
        "gradient_clipping": options.max_grad_norm,  # DeepSpeed's own default is 1.0
        "fp16": {"enabled": options.precision == "fp16"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": options.zero_stage,
            **(_sharing(options, largest) if options.zero_stage == 3 else {}),
            # DeepSpeed's default reserves 5e8 numbers, for models that are trained as a whole.
            "reduce_bucket_size": trainable,
            "allgather_bucket_size": trainable,
        },
        # torch's AdamW: DeepSpeed's own is compiled for a minute when first used on a CPU.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }


def _sharing(options: Training, largest: int) -> dict[str, Any]:
    """What is set of ZeRO-3 alone.

    The adapter's matrices stay whole on each worker: they are so small that fetching each of them, in every pass, costs
    its latency and saves no memory worth it.
    """
    return {
        "stage3_prefetch_bucket_size": options.zero3.prefetch,
        "stage3_max_live_parameters": options.zero3.live,
        "stage3_param_persistence_threshold": max(PERSISTENT, largest),
        **({"offload_param": {"device": "cpu"}} if options.offload == "cpu" else {}),
    }


def _partition(denoiser: nn.Module, options: Training, config: dict[str, Any]) -> None:
    """Leave this worker its share of each weight, on the device or, if it is offloaded, on the CPU.

    `deepspeed.initialize` would do that too, but move the whole denoiser to the device first.
    """
    if options.precision == "fp16":
        for weight in denoiser.parameters():  # the adapter's; DeepSpeed casts none that is partitioned
            weight.data = weight.data.half()
    deepspeed.zero.Init(module=denoiser, config_dict_or_path=config)
    denoiser.to(get_accelerator().current_device_name())  # buffers, which stay whole


def _norm(engine: Any) -> float:
    # Stage 0 keeps plain gradients and reports no norm of its own.
    gradients = [p.grad for p in lora_parameters(engine).values() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def _node_wide(own: str) -> str:
    """Of all workers' folders that of the first on this one's node: workers of a node have consecutive ranks."""
    folders: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(folders, own if int(os.environ["LOCAL_RANK"]) == 0 else None)
    return [folder for folder in folders[: dist.get_rank() + 1] if folder is not None][-1]


def _convert(source: Path, target: Path) -> None:
    """Turn the shares of all workers in `source` into DeepSpeed's layout for any number of them."""
    target.mkdir()
    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # in this process
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it tells its progress
        ds_to_universal.main(options)
