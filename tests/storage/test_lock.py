"""A folder that one process at a time writes into, also where several machines share it."""

import errno
import os
import re
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from forking import complete

from unicl_cli.errors import UniclError
from unicl_cli.storage import holder, lock
from unicl_cli.storage.holder import STALE_SECONDS, Holder, describe_self, read_age, read_holder
from unicl_cli.storage.lock import is_lock, lock_folder, names_holder

ELSEWHERE = Holder(7, "node3", "00000000-0000-00000001")
OLDER = Holder(7, "node3", "")
"""A process of another machine; one of an older unicl, which gives no sign of life."""


def leave(folder, of, age):
    """The lock of ``of``, whose last sign of life was so many seconds ago by the clock of the file system."""
    folder.mkdir(exist_ok=True)
    path = folder / ".lock"
    path.write_text(of.as_line() if of.mark else f"unicl: {of}\n")
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def taken(folder):
    """The holder inside a lock of the folder."""
    with lock_folder(folder, ".lock", "choose another"):
        return read_holder(folder / ".lock")


def gone():
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def refusal(folder):
    with pytest.raises(UniclError) as error, lock_folder(folder, ".lock", "choose another"):
        pass
    return error.value.message, error.value.hint


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


# -- several machines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stuck", [False, True], ids=["its system's lock is free", "a server keeps its lock"])
def test_the_lock_of_another_machine_is_free_once_it_gave_no_sign_for_long(tmp_path, capsys, is_stuck):
    path = leave(tmp_path / "c", ELSEWHERE, 40)
    stuck = FileLock(path, timeout=0)
    if is_stuck:
        stuck.acquire()
    said, hint = refusal(tmp_path / "c")
    assert re.fullmatch(rf"{tmp_path}/c: locked by pid 7 on node3, last sign of life 4\ds ago", said)
    assert re.fullmatch(
        r"wait for it, or choose another; if that machine is gone, run the same command again in 1m\d\ds", hint
    )
    assert read_holder(path) == ELSEWHERE, "nothing was changed"
    then = path.stat().st_mtime - STALE_SECONDS
    os.utime(path, (then, then))
    assert capsys.readouterr().err == ""
    assert taken(tmp_path / "c").pid == os.getpid()
    assert re.fullmatch(
        rf"{tmp_path}/c: took over the lock of pid 7 on node3, whose last sign of life was 2m4\ds ago\n",
        capsys.readouterr().err,
    )
    stuck.release()


def test_a_holder_that_ended_leaves_a_file_that_says_so_and_is_free_everywhere(tmp_path, capsys):
    mine = taken(tmp_path / "c")
    path = tmp_path / "c" / ".lock"
    assert read_holder(path) == mine._replace(ended=True)
    assert names_holder(path)
    assert is_lock(path)
    leave(tmp_path / "c", ELSEWHERE._replace(ended=True), 1)
    assert taken(tmp_path / "c").pid == os.getpid()
    assert capsys.readouterr().err == ""


def test_a_process_of_this_machine_holds_no_lock_once_it_is_gone(tmp_path, capsys):
    leave(tmp_path / "c", describe_self()._replace(pid=gone()), 1)
    assert taken(tmp_path / "c").pid == os.getpid()
    assert capsys.readouterr().err == ""


def test_containers_of_one_system_share_its_locks_but_not_the_numbers_of_processes(tmp_path):
    mine = describe_self()
    numbers = "0000" if mine.mark[9:13] != "0000" else "1111"
    other = mine._replace(pid=1, host="container", mark=f"{mine.mark[:9]}{numbers}-00000001")
    path = leave(tmp_path / "c", other, 1)
    with FileLock(path):
        assert refusal(tmp_path / "c") == (
            f"{tmp_path}/c: locked by pid 1 on container",
            "wait for it, or choose another",
        )
    assert taken(tmp_path / "c").pid == os.getpid(), "the system's lock was free"


def test_an_older_unicl_gives_no_sign_so_that_its_age_says_nothing(tmp_path):
    path = leave(tmp_path / "c", OLDER, 10**6)
    with FileLock(path):
        said, hint = refusal(tmp_path / "c")
    assert said == f"{tmp_path}/c: locked by pid 7 on node3"
    assert hint == f"wait for it, or choose another; if that machine is gone, remove {path}"
    leave(tmp_path / "c", OLDER, 1)
    assert taken(tmp_path / "c").pid == os.getpid()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_system_locks_nothing_the_line_in_the_file_decides(tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with lock_folder(tmp_path / "c", ".lock", "choose another"):
        assert refusal(tmp_path / "c")[0] == f"{tmp_path}/c: locked by {describe_self()}"
    leave(tmp_path / "c", describe_self()._replace(pid=gone()), 1)
    assert taken(tmp_path / "c").pid == os.getpid()
    leave(tmp_path / "c", ELSEWHERE, 1)
    assert "locked by pid 7 on node3, last sign of life" in refusal(tmp_path / "c")[0]
    leave(tmp_path / "c", ELSEWHERE, STALE_SECONDS)
    assert taken(tmp_path / "c").pid == os.getpid()


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "_FIRST_BEAT", 0.01)
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.01)
    with lock_folder(tmp_path, ".lock", "choose another"):
        path = tmp_path / ".lock"
        os.utime(path, (0, 0))
        end = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_the_age_is_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    path = leave(tmp_path / "c", ELSEWHERE, 40)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 39 < read_age(path) < 100
    assert [item.name for item in path.parent.iterdir()] == [".lock"]


LOSER = """
import sys, time
from pathlib import Path
from unicl_cli.storage import holder
from unicl_cli.storage.lock import lock_folder
holder._FIRST_BEAT = holder.BEAT_SECONDS = 0.01
with lock_folder(Path(sys.argv[1]), ".lock", "choose another"):
    Path(sys.argv[1], ".lock").write_text(sys.argv[2])
    time.sleep(60)
"""


def test_a_process_whose_lock_was_taken_over_ends(tmp_path):
    done = complete([sys.executable, "-c", LOSER, str(tmp_path / "c"), ELSEWHERE.as_line()])
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        f"error: {tmp_path}/c: its lock was taken over by pid 7 on node3, since this process gave no sign of life"
    )
    assert read_holder(tmp_path / "c" / ".lock") == ELSEWHERE
