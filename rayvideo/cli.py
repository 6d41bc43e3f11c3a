"""Tools beside the jobs: `rayvideo doctor`, `plan`, `convert` and `export`. What a cluster runs is in jobs/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rayvideo.errors import UserError
from rayvideo.paths import argument

# Heavy imports are made by the command that needs them, so that --help answers at once.


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line; a `UserError` ends the process with its message and exit code 1."""
    try:
        args = parser().parse_args(argv)
        args.run(args)
    except UserError as error:
        sys.exit(f"error: {error}")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(prog="rayvideo", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    examine = commands.add_parser("doctor", help="try a recipe's judges and one step, before GPU hours are spent")
    examine.add_argument(
        "--recipe", required=True, type=argument, metavar="FILE", help="YAML recipe, see jobs/recipes/"
    )
    examine.add_argument("--json", type=argument, metavar="FILE", help="write the findings there too")
    examine.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change an option, e.g. training.batch_size=4"
    )
    examine.set_defaults(run=doctor)

    planned = commands.add_parser("plan", help="memory and time of a recipe's training, without weights or a GPU")
    planned.add_argument(
        "--recipe", required=True, type=argument, metavar="FILE", help="YAML recipe, see jobs/recipes/"
    )
    planned.add_argument("--gpu-memory", metavar="80GiB", help="of each GPU; default: of this machine's, if it has one")
    planned.add_argument("--workers", type=int, metavar="N", help="in place of training.workers")
    planned.add_argument("--rate", type=float, metavar="TFLOPS", help="TFLOP/s that a worker computes at")
    planned.add_argument("--json", type=argument, metavar="FILE", help="write the plan there too")
    planned.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change an option, e.g. training.batch_size=4"
    )
    planned.set_defaults(run=plan)

    convert = commands.add_parser("convert", help="another project's checkpoints -> a diffusers folder")
    formats = convert.add_subparsers(required=True, metavar="FORMAT")
    vgen = formats.add_parser("vgen", help="InstructVideo's release (VGen)")
    vgen.add_argument(
        "--unet", required=True, type=argument, metavar="FILE", help="model_scope_v1-4_0600000.pth, or one with LoRA"
    )
    vgen.add_argument(
        "--vae", type=argument, metavar="FILE", help="v2-1_512-ema-pruned.ckpt; only first_stage_model.* is read"
    )
    vgen.add_argument("--text", type=argument, metavar="FILE", help="open_clip_pytorch_model.bin (ViT-H-14)")
    vgen.add_argument("--tokenizer", type=argument, metavar="DIR|ID", help="in place of OpenCLIP's own vocabulary")
    vgen.add_argument("--lora", action="store_true", help="fail if the UNet file holds no LoRA")
    vgen.add_argument("--head-dim", type=int, default=64, metavar="N", help="width of the UNet's heads (default 64)")
    vgen.add_argument("--out", required=True, type=argument, metavar="DIR", help="new folder")
    vgen.set_defaults(run=convert_vgen)

    export = commands.add_parser("export", help="an adapter or a tuned model -> another program's format")
    formats = export.add_subparsers(required=True, metavar="FORMAT")
    for name, text in {
        "diffusers": "LoRA for diffusers",
        "comfyui": "LoRA for ComfyUI, with the names of the model's own code (Wan)",
        "kohya": "LoRA with the key names of kohya's scripts (UNets) and musubi-tuner (Wan), for ComfyUI too",
    }.items():
        lora = formats.add_parser(name, help=text)
        lora.add_argument(
            "--adapter", required=True, type=argument, metavar="DIR", help="PEFT folder, such as runs/first/adapter"
        )
        lora.add_argument("--out", required=True, type=argument, metavar="FILE", help="new .safetensors file")
        lora.add_argument(
            "--model",
            type=argument,
            metavar="DIR|ID",
            help="pipeline that it was trained on, to check that it fits; needed for one with two denoisers",
        )
        lora.set_defaults(run=export_lora, names=name)
    for name, text in {"merged": "diffusers denoiser with the adapter in it", "vgen": "checkpoint for VGen"}.items():
        whole = formats.add_parser(name, help=text)
        whole.add_argument(
            "--model", required=True, type=argument, metavar="DIR|ID", help="pipeline that the adapter was trained on"
        )
        whole.add_argument("--adapter", required=name == "merged", type=argument, metavar="DIR", help="PEFT folder")
        if name == "vgen":
            whole.add_argument("--merge", action="store_true", help="put the adapter into the weights, write no LoRA")
        whole.add_argument(
            "--out", required=True, type=argument, metavar="PATH", help="new folder (merged) or file (vgen)"
        )
        whole.set_defaults(run=export_merged if name == "merged" else export_vgen)
    return root


def doctor(args: argparse.Namespace) -> None:
    """`rayvideo doctor`: exit code 1 if a check failed."""
    from rayvideo.doctor.command import run

    if not run(args.recipe, args.overrides, args.json):
        sys.exit(1)


def plan(args: argparse.Namespace) -> None:
    """`rayvideo plan`: exit code 1 if the recipe does not fit."""
    from rayvideo.planning.command import run

    if not run(args.recipe, args.overrides, args.gpu_memory, args.workers, args.rate, args.json):
        sys.exit(1)


def convert_vgen(args: argparse.Namespace) -> None:
    """`rayvideo convert vgen`"""
    from rayvideo.models import vgen

    written = vgen.convert(
        unet=args.unet,
        vae=args.vae,
        text=args.text,
        tokenizer=args.tokenizer,
        out=args.out,
        head_dim=args.head_dim,
        require_lora=args.lora,
    )
    print(f"{args.out}: {', '.join(written)}")
    if absent := sorted(vgen.PIPELINE.keys() - set(written)):
        options = {"vae": "--vae", "text_encoder": "--text", "tokenizer": "--tokenizer"}
        wanted = ", ".join(f"{part} ({options[part]})" for part in absent)
        print(f"Not a whole pipeline yet, so there is no model_index.json; lacking: {wanted}")


def export_lora(args: argparse.Namespace) -> None:
    """`rayvideo export diffusers`, `rayvideo export comfyui` and `rayvideo export kohya`"""
    from rayvideo.models import export

    write = {
        "diffusers": export.export_diffusers,
        "comfyui": export.export_comfyui,
        "kohya": export.export_kohya,
    }[args.names]
    family = export.family_for(args.model, args.adapter) if args.model else None
    written = write(args.adapter, args.out, family)
    print(*written, sep="\n")


def export_merged(args: argparse.Namespace) -> None:
    """`rayvideo export merged`"""
    from rayvideo.models import export

    export.export_merged(args.model, args.adapter, args.out)
    print(args.out)


def export_vgen(args: argparse.Namespace) -> None:
    """`rayvideo export vgen`"""
    from rayvideo.models import export

    export.export_vgen(args.model, args.out, adapter=args.adapter, merge=args.merge)
    print(args.out)


if __name__ == "__main__":
    main()
