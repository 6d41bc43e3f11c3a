"""`rayvideo convert` and `rayvideo export`, from the command line to files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayvideo import cli
from tests.models import reference


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A VGen checkpoint with LoRA."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("release") / "unet.pth"
    torch.save({"state_dict": reference.UNet(lora=True).state_dict(), "step": 1}, file)
    return file


def test_from_the_release_to_every_format(unet, tmp_path, capsys):
    model, adapter = str(tmp_path / "model"), str(tmp_path / "model" / "adapter")
    cli.main(["convert", "vgen", "--unet", str(unet), "--lora", "--head-dim", "16", "--out", model])
    said = capsys.readouterr().out
    assert f"{model}: adapter, scheduler, unet" in said
    assert "no model_index.json; lacking: text_encoder (--text), tokenizer (--tokenizer), vae (--vae)" in said
    for arguments in (
        ["diffusers", "--adapter", adapter, "--out", str(tmp_path / "diffusers.safetensors")],
        ["kohya", "--adapter", adapter, "--out", str(tmp_path / "kohya.safetensors")],
        ["merged", "--model", model, "--adapter", adapter, "--out", str(tmp_path / "merged")],
        ["vgen", "--model", model, "--adapter", adapter, "--out", str(tmp_path / "tuned.pth")],
        ["vgen", "--model", model, "--adapter", adapter, "--merge", "--out", str(tmp_path / "merged.pth")],
    ):
        cli.main(["export", *arguments])
        assert capsys.readouterr().out == f"{arguments[-1]}\n"
    weights = torch.load(unet)["state_dict"]
    lora = sum("_lora." in name for name in weights)
    assert len(load_file(tmp_path / "diffusers.safetensors")) == lora
    assert len(load_file(tmp_path / "kohya.safetensors")) == lora // 2 * 3
    assert len(torch.load(tmp_path / "tuned.pth")["state_dict"]) == len(weights)
    assert len(torch.load(tmp_path / "merged.pth")["state_dict"]) == len(weights) - lora
    assert (tmp_path / "merged" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "vgen", "--unet", "absent.pth", "--out", str(tmp_path / "out")])
    assert stop.value.code == "error: absent.pth is not a file"


def test_a_command_needs_a_format(capsys):
    for arguments in ([], ["convert"], ["export"], ["export", "merged", "--model", "m", "--out", "o"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2


def test_help_is_quick_to_come_and_the_script_is_declared():
    code = "import sys, rayvideo.cli as cli; cli.parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert 'rayvideo = "rayvideo.cli:main"' in Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
