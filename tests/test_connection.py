"""What keeps a job from Ray ends in a line with the mend, soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray._private.utils import validate_socket_filepath
from ray._private.worker import print_to_stdstream

from rayvideo import connection
from rayvideo.connection import StartError, start_ray, temporary_folder
from rayvideo.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
RECIPE = parse_recipe({"model": {"path": "m"}, "data": {"manifest": "l"}, "reward": {"judges": [{"name": "judge"}]}})


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:8265", "is an address for `ray job submit`.* unset RAY_ADDRESS, or call it RAY_API_SERVER_"),
        ("ray://127.0.0.1:10001", "is an address for `ray job submit`"),
        ("head", "Invalid address format: head; start the cluster, mend the address, or unset RAY_ADDRESS"),
        ("127.0.0.1:1", "no Ray answers there within 0.5 s; start the cluster, mend the address, or unset RAY_ADDRESS"),
        ("silent", "no Ray answers there within 0.5 s"),
    ],
)
def test_an_address_where_no_ray_is(monkeypatch, silent, address, why):
    address = silent if address == "silent" else address
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(connection, "PATIENCE_S", 0.5)
    with pytest.raises(StartError, match=f"^RAY_ADDRESS={address}:? {why}"):
        start_ray(RECIPE)


def test_a_job_ends_with_that_line(tiny_pipeline, tiny_clips, tmp_path):
    judge = {"name": "bright", "type": "tests.cluster.judges:Brightness"}
    tree = {
        "model": {"path": str(tiny_pipeline)},
        "data": {"manifest": str(tiny_clips / "list.txt"), "frames": 4, "height": 64, "width": 64},
        "reward": {"judges": [judge], "segments": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "jobs/prepare.py", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: RAY_ADDRESS=http://127.0.0.1:8265 is an address for")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_too_few_open_files_are_told_before_ray_dies_of_them():
    code = "from tests.test_connection import RECIPE, start_ray; start_ray(RECIPE)"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 256; {sys.executable} -c '{code}'"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1].startswith(
        "rayvideo.connection.StartError: a process may open only 256 files here (`ulimit -Hn`), and Ray needs 1024; "
    )


def test_a_long_tmpdir_gives_way_to_a_short_one(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    fits = f"{tmp_path}/{'x' * 200}"[: connection.LONGEST_SOCKET - len(connection.SESSION) - 1]
    if fits.startswith(f"{tmp_path}/"):  # pytest's own folder may be too long already
        monkeypatch.setenv("TMPDIR", fits)
        assert temporary_folder() == f"{fits}/ray"
        validate_socket_filepath(f"{fits}/{connection.SESSION}")
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 100}")
    assert temporary_folder() == "/tmp/ray"
    assert "is too long for the paths of Ray's sockets, which lie in /tmp instead" in caplog.text
    assert not Path(f"/tmp/{'x' * 100}").exists()


def test_a_folder_that_cant_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    monkeypatch.setattr(connection, "LONGEST_SOCKET", 1000)  # pytest's own folder may be a long one
    with pytest.raises(StartError, match=r"Ray can't write .*file.*; set RAY_TMPDIR to a folder of yours"):
        temporary_folder()


def test_what_ray_says_in_every_log_and_means_nothing_is_left_out(monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    for _ in range(2):
        with pytest.raises(StartError):
            start_ray(RECIPE)
    many = "WARNING: 8 PYTHON worker processes have been started on node: x with address: y, which is 4x the maximum"
    watcher = "[E] Actor with class name: 'PreemptionWatcher' and ID: '1' has constructor arguments in the object store"
    print_to_stdstream({"lines": [many, "Failed"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    print_to_stdstream({"lines": [watcher, "lost"], "pid": "7", "ip": "1", "is_err": True}, ignore_prefix=False)
    said = capsys.readouterr()
    assert "Failed" in said.out
    assert "lost" in said.err
    assert "started on node" not in said.out
    assert "PreemptionWatcher" not in said.err
