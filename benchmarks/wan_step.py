"""One training step of Wan 2.1 T2V 1.3B with random weights: seconds of its parts, and memory.

    python benchmarks/wan_step.py --frames 33 --height 256 --width 256
    python benchmarks/wan_step.py --frames 81 --height 480 --width 832 --context 1

Needs torch, diffusers and peft: no Ray, no network, no weights. The step is that of jobs/recipes/wan2.1-1.3b.yaml with
one clip: corrupt it to σ = 0.658, denoise it with guidance, the last step with a gradient, decode four frames one by
one, and go back from their brightness, which stands in for a judge, to the adapter. `--layers` and `--vae-dim` make the
model smaller, to try this on a CPU; figures of such a model say nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

from rayvideo import editing
from rayvideo.models.decoding import frame_by_frame
from rayvideo.models.lora import add_lora, lora_parameters
from rayvideo.models.wan import Wan
from rayvideo.rewards.temporal import sample_segments
from rayvideo.sections import Lora

TEXT = (512, 4096)  # tokens and width of UMT5-XXL's embeddings
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="steps of a whole chain (D)")
    parser.add_argument("--context", type=int, default=1, help="model.vae_context")
    parser.add_argument("--repeat", type=int, default=3, help="measured steps, after one that warms up")
    parser.add_argument("--layers", type=int, default=30, help="of the transformer")
    parser.add_argument("--vae-dim", type=int, default=96, help="base width of the VAE")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu --layers 1 --vae-dim 8 tries the script on a CPU")
    print(json.dumps(measure(arguments), indent=2))


def build(device: torch.device, layers: int, vae_dim: int) -> Wan:
    """The published architecture, but for what the arguments make smaller, with random weights."""
    with device:
        transformer = WanTransformer3DModel(
            num_attention_heads=12,
            attention_head_dim=128,
            ffn_dim=8960,
            num_layers=layers,
            text_dim=TEXT[1],
        )
        vae = AutoencoderKLWan(base_dim=vae_dim)
    for name, module in transformer.named_modules():
        kept = any(part in name for part in transformer._keep_in_fp32_modules)
        if not kept and not list(module.children()):
            module.to(torch.bfloat16)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    model = Wan(scheduler, transformer.config.patch_size, denoiser=transformer, vae=vae)
    model.dtype = torch.bfloat16
    model.enable_checkpointing()
    return model.to(device)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Median seconds of each part of a step, and the peak of the GPU's memory."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model = build(device, arguments.layers, arguments.vae_dim)
    model.denoiser = add_lora(model.denoiser, Lora(rank=16, alpha=16.0), seed=0)
    chain = model.schedule.chain(arguments.steps)
    chain = chain.last(model.schedule.steps_from(arguments.steps, 0.658))
    clean = torch.randn(1, *model.latent_shape(arguments.frames, arguments.height, arguments.width), device=device)
    prompts, nothing = torch.randn(1, *TEXT), torch.randn(1, *TEXT)
    optimizer = torch.optim.AdamW(lora_parameters(model.denoiser).values(), lr=1e-5)
    seconds: dict[str, list[float]] = defaultdict(list)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def timed(part: str, number: int) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first one warms up
            seconds[part].append(time.perf_counter() - started)

    for number in range(arguments.repeat + 1):
        drawn = sample_segments(1, arguments.frames, 4, generator=torch.Generator().manual_seed(number))
        predict = model.guided(prompts, nothing, 5.0)
        with timed("step", number):
            with timed("rollout", number):
                noisy = model.schedule.corrupt(clean, torch.randn_like(clean), chain.levels[0])
                latents = editing.run_chain(
                    predict, noisy, model.schedule, chain, grad_on={chain.steps - 1}, checkpoint=False
                )
            with timed("decode", number):
                pixels = frame_by_frame(
                    lambda z, one: model.decode_frames(z, one, context=arguments.context), latents, drawn
                )
            with timed("backward", number):
                pixels.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    names = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    return {
        "clip": [arguments.frames, arguments.height, arguments.width],
        "calls of the denoiser": chain.steps,
        "seconds": {part: statistics.median(each) for part, each in seconds.items()},
        "peak GiB": peak,
        "device": gpu or "cpu",
        "versions": names,
    }


if __name__ == "__main__":
    main()
