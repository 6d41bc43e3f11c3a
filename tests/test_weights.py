"""A file of weights that can't be trusted or read is refused by name, and never run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from rayvideo.weights import WeightsError, misfits, read_tensors, require_fit

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


class Code:
    """What a malicious file does when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_are_read_bare_or_nested(tmp_path, nested):
    torch.save({"state_dict": TENSORS, "step": 3} if nested else TENSORS, tmp_path / "w.pth")
    found = read_tensors(tmp_path / "w.pth")
    assert found.keys() == TENSORS.keys()
    assert misfits(TENSORS, found) == []
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, zipped):
    content = {"state_dict": {"a": Code(tmp_path / "ran")}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="w.pth .*more than tensors; nothing of it was run.*safetensors"):
        read_tensors(tmp_path / "w.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(WeightsError, match="nothing of it was run"):
        read_tensors(tmp_path / "bare.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "old.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_named(tmp_path, name, share):
    big = {"a": torch.rand(1000), "b": torch.rand(1000)}
    if name == "w.safetensors":
        save_file(big, tmp_path / name)
    else:
        torch.save(big, tmp_path / name, _use_new_zipfile_serialization=name == "w.pth")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=f"{name} (can't be read; is it complete|.*is damaged)"):
        read_tensors(tmp_path / name)


def test_files_of_another_kind_are_named(tmp_path):
    (tmp_path / "text.pth").write_text("a list of captions, not weights\n")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": TENSORS, "lr": 0.1}, tmp_path / "other.pth")
    for name, said in {
        "absent.pth": "is not a file",
        "text.pth": "is no file of weights",
        "list.pth": "holds no state dict.*list",
        "other.pth": r"holds no state dict.*\['lr', 'model'\]",
    }.items():
        with pytest.raises(WeightsError, match=f"{name} .*{said}"):
            read_tensors(tmp_path / name)


def test_a_fit_says_nothing():
    require_fit(TENSORS, dict(TENSORS), "w.pth")
