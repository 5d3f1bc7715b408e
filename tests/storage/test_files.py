"""Temporary names, outputs onto links, devices and pipes, and the check of a folder before a command writes there."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.storage import files
from unicl_cli.storage.files import (
    discard,
    find_output,
    is_leftover,
    is_written_through,
    remove_leftovers,
    temporary_beside,
    temporary_name,
    write_atomic,
    write_output,
    write_output_data,
)
from unicl_cli.storage.lock import check_unused, is_lock, lock_folder, names_holder

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def test_only_whole_names_of_files_and_folders_are_leftovers(tmp_path):
    ours = temporary_name(tmp_path)
    ours.touch()
    folder = temporary_name(tmp_path)
    (folder / "inside").mkdir(parents=True)
    theirs = [
        *("a.tmp", f"x{ours.name}", f"{ours.name}~", f"{ours.name}\n", ".unicl-abc.tmp", ".unicl-.tmp", ".tmp-1"),
        *(ours.name.upper(), ours.name.replace("tmp", "tmq"), ours.name[:-5] + ".tmp"),
    ]
    for name in theirs:
        (tmp_path / name).touch()
    link = temporary_name(tmp_path)
    link.symlink_to(tmp_path / "a.tmp")
    deeper = tmp_path / "deeper"
    deeper.mkdir()
    temporary_name(deeper).touch()
    assert {path for path in tmp_path.iterdir() if is_leftover(path)} == {ours, folder}
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, link.name, "deeper"}
    assert len(list(deeper.iterdir())) == 1, "a folder is never searched"


def test_a_temporary_file_fits_beside_the_longest_name(tmp_path):
    write_atomic(tmp_path / ("ä" * 127), "text")
    with temporary_beside(tmp_path / "a") as part:
        part.touch()
        assert is_leftover(part)
    assert not part.exists()


def test_a_folder_that_resists_stays_whole_or_leaves_a_leftover(tmp_path, monkeypatch):
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / "a").touch()

    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "busy", str(path))

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    with pytest.raises(OSError, match="busy"):
        discard(folder)
    assert not folder.exists(), "a reader finds it whole, or not at all"
    assert [is_leftover(path) for path in tmp_path.iterdir()] == [True]
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_replaces_the_target_of_links_and_keeps_mode_and_links(tmp_path):
    real, first, second = tmp_path / "deep" / "real.json", tmp_path / "first", tmp_path / "second"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    first.symlink_to("deep/real.json")
    second.symlink_to(first)
    before = real.stat().st_ino
    write_output_data(second, "new")
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == ("new", 0o640)
    assert real.stat().st_ino != before, "replaced whole, not written in place"
    assert first.is_symlink()
    assert second.is_symlink()
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to("deep/new.json")
    write_output_data(nowhere, "made")
    assert (real.parent / "new.json").read_text() == "made"
    assert {path.name for path in real.parent.iterdir()} == {"real.json", "new.json"}


def test_a_failed_output_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with write_output(tmp_path / "a") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_takes_no_output_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, said in ((tmp_path, "neither a file nor a stream"), (tmp_path / "loop", "symbolic links")):
        with pytest.raises(OSError, match=said):
            find_output(path)
        with pytest.raises(OSError, match=said), write_output(path):
            pytest.fail("nothing is asked for")
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.skipif(AS_ROOT, reason="root may write everything")
def test_a_protected_file_is_not_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o444)
    with pytest.raises(PermissionError):
        write_output_data(tmp_path / "a", "new")


def test_a_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        heard: list[bytes] = []
        reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))  # noqa: B023
        reader.start()
        assert is_written_through(path)
        write_output_data(path, "through")
        reader.join(10)
        assert heard == [b"through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_pipe_without_a_reader_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "READER_SECONDS", 0.0)
    with pytest.raises(OSError, match="no program reads this pipe") as caught:
        write_output_data(tmp_path / "pipe", "nobody")
    assert caught.value.filename == str(tmp_path / "pipe")
    monkeypatch.undo()
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_output_data(tmp_path / "pipe", b"x" * 1_000_000)  # more than a pipe holds
    reader.join(10)
    assert heard == [b"x" * 1_000_000]


@pytest.mark.skipif(not AS_ROOT, reason="only root makes devices")
def test_a_device_stays_a_device(tmp_path):
    for name, minor in (("null", 3), ("full", 7)):
        try:
            os.mknod(tmp_path / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            (tmp_path / name).open("wb").close()
        except OSError:
            pytest.skip("no devices in here")
    write_output_data(tmp_path / "null", "gone")
    with pytest.raises(OSError, match="No space"):
        write_output_data(tmp_path / "full", "too much")
    assert all(stat.S_ISCHR((tmp_path / name).stat().st_mode) for name in ("null", "full"))


SAYS = """
import sys
from pathlib import Path
from unicl_cli.storage.files import write_output_data
print("before")
write_output_data(Path(sys.argv[1]), "document\\n")
print("after")
"""


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs /dev/stdout")
@pytest.mark.parametrize("where", ["/dev/stdout", "/proc/self/fd/1", "link", "out.txt"])
def test_standard_output_by_name_goes_where_standard_output_goes(tmp_path, where):
    """Also if that is a file: it is neither replaced nor written from its start."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    for stdout in (subprocess.PIPE, (tmp_path / "out.txt").open("wb")):
        if stdout == subprocess.PIPE and where == "out.txt":
            continue
        command = [sys.executable, "-c", SAYS, where]
        done = subprocess.run(command, cwd=tmp_path, stdout=stdout, text=True, check=True)
        told = done.stdout if stdout == subprocess.PIPE else (tmp_path / "out.txt").read_text()
        assert told == "before\ndocument\nafter\n"
    assert (tmp_path / "link").is_symlink()


# -- the check before a command writes --------------------------------------------------------------------------------


def test_a_folder_is_unused_if_it_holds_nothing_but_our_leftovers(tmp_path):
    def is_own(path: Path) -> bool:
        return path.name == ".lock" and is_lock(path)

    check_unused(tmp_path / "new", "choose another")
    check_unused(tmp_path, "choose another")
    temporary_name(tmp_path).touch()
    with lock_folder(tmp_path, ".lock", "choose another"):
        check_unused(tmp_path, "choose another", is_own)
    for name, told in ((".hidden", ".hidden"), ("a", r"\.hidden and 1 more")):
        (tmp_path / name).touch()
        with pytest.raises(UniclError, match=rf"contains other files \({told}\)") as error:
            check_unused(tmp_path, "choose another", is_own)
        assert error.value.hint == "choose another"


def test_a_file_or_a_dangling_link_is_not_a_folder(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("missing")
    for name in ("a", "link"):
        with pytest.raises(UniclError, match="not a directory"):
            check_unused(tmp_path / name, "choose another")


@pytest.mark.parametrize(
    ("text", "lock", "holder"),
    [
        ("", True, False),
        ("unicl: pid 12 on host\n", True, True),
        ("unicl: pid 12 on host\nmore", False, False),
        ("pid 12 on host\n", False, False),
        ("mine", False, False),
        ("x" * 5000, False, False),
    ],
)
def test_a_lock_is_known_by_what_it_says(tmp_path, text, lock, holder):
    (tmp_path / ".lock").write_text(text)
    assert (is_lock(tmp_path / ".lock"), names_holder(tmp_path / ".lock")) == (lock, holder)
    (tmp_path / "link").symlink_to(tmp_path / ".lock")
    assert not is_lock(tmp_path / "link")
    (tmp_path / "twin").hardlink_to(tmp_path / ".lock")
    assert not is_lock(tmp_path / ".lock"), "what is written into it would appear under the other name"
