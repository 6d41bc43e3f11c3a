import pytest

from rayvideo.errors import UserError
from rayvideo.staging import written_whole


def test_the_target_appears_whole_with_the_mode_of_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "sub" / "out").mkdir(parents=True)  # an empty folder may be there
    with written_whole(tmp_path / "sub" / "out") as folder:
        folder.mkdir()
        (folder / "a").write_text("a")
        assert not (tmp_path / "sub" / "out").exists()
    assert [path.name for path in (tmp_path / "sub").rglob("*")] == ["out", "a"]
    assert (tmp_path / "sub" / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_nothing_behind(tmp_path):
    def fail(file):
        file.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "out") as file:
        fail(file)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="exists already"), written_whole(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"
