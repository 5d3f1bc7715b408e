"""A folder that one process at a time writes into."""

import os

import pytest

from unicl_cli.core.lock import lock_folder
from unicl_cli.errors import UniclError


def test_a_second_writer_is_told_who_holds_the_lock(tmp_path):
    folder = tmp_path / "a/b"
    with lock_folder(folder, ".lock", "choose another"):
        told = pytest.raises(UniclError, match=f"a/b: locked by pid {os.getpid()} on ")
        with told as error, lock_folder(folder, ".lock", "choose another"):
            pass
        assert error.value.hint == "wait for it, or choose another"
        (folder / ".lock").unlink()
    assert not (tmp_path / "a").exists(), "made here, and empty at the end"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    told = pytest.raises(UniclError, match=r"file/c: cannot be written: Not a directory")
    with told as error, lock_folder(tmp_path / "file/c", ".lock", "choose another"):
        pass
    assert error.value.hint == "choose another"


def test_a_lock_is_never_written_through_another_name(tmp_path):
    (tmp_path / "precious").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").hardlink_to(tmp_path / "precious")
    with pytest.raises(UniclError, match=r"\.lock: a link"), lock_folder(tmp_path / "a", ".lock", "choose another"):
        pass
    assert (tmp_path / "precious").read_text() == ""
