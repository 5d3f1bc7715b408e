"""`unicl prepare` ended at every point that matters: nothing half made is left, and the same command goes on."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from forking import begin, complete
from scenes import draw_scene

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus

SMALL = ("--labels", "shapes?count=90&test=20", "--captions", "shapes?count=80&test=20", "--dedup", "exact")
REPLACE = """
import os, pathlib, signal, sys
suffix, when = sys.argv[1:3]
really = pathlib.Path.replace
def replace(self, target):
    if str(target).endswith(suffix) and when == "before": os.kill(os.getpid(), signal.SIGKILL)
    done = really(self, target)
    if str(target).endswith(suffix): os.kill(os.getpid(), signal.SIGKILL)
    return done
pathlib.Path.replace = replace
from unicl_cli.cli import main
sys.exit(main(sys.argv[3:]))
"""
"""Dies when a file is about to get its name, or has just got it."""


SETS = ("--labels", "shapes?count=90&test=20&attributes=true&captions=true", "--dedup", "exact")
"""Rows with several labels, in groups."""


def command(out, *more, sources=SMALL):
    return ["prepare", *sources, "-o", str(out), *more]


def unicl(argv, **options):
    argv = [sys.executable, "-m", "unicl_cli", *map(str, argv)]
    return complete(argv, **options)


def litter(folder):
    """What no ended prepare may leave behind."""
    return [
        str(item)
        for item in folder.rglob("*")
        if item.suffix in (".tmp", ".sha256", ".near", ".arrow")
        or item.name == ".lock"
        or (item.is_dir() and not any(item.iterdir()))
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, hashes):
    out = tmp_path_factory.mktemp("whole") / "c"
    assert main(command(out, "--workers", "1")) == 0
    return hashes(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "when"),
    [
        *(("plan.json", "before"), (".sha256", "before"), ("duplicates.json", "before"), ("00001.json", "before")),
        *(("-labels-00000-of-00001.parquet", "before"), ("manifest.json", "before"), ("manifest.json", "after")),
    ],  # after any other is before the next
)
def test_killed_as_a_file_gets_its_name_the_same_command_ends_in_the_same_bytes(tmp_path, whole, hashes, suffix, when):
    """Planning, a digest, a shard, between shard and marker, a marker, the manifest."""
    out = tmp_path / "c"
    argv = [sys.executable, "-c", REPLACE, suffix, when, *command(out)]
    assert complete(argv).returncode == -signal.SIGKILL
    assert main(command(out, "--workers", "1")) == 0
    assert hashes(out) == whole
    assert litter(out) == []


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "when"), [("00001.json", "before"), ("manifest.json", "before")])
def test_killed_on_rows_with_label_sets_the_same_command_ends_in_the_same_bytes(tmp_path, hashes, suffix, when):
    """Between a shard and its marker; between the last marker and the manifest, which has the groups."""
    cut, quiet = (command(tmp_path / name / "c", "--workers", "1", sources=SETS) for name in ("cut", "quiet"))
    argv = [sys.executable, "-c", REPLACE, suffix, when, *cut]
    assert complete(argv).returncode == -signal.SIGKILL
    assert main(cut) == 0
    assert main(quiet) == 0
    assert hashes(tmp_path / "cut" / "c") == hashes(tmp_path / "quiet" / "c")
    assert open_corpus(tmp_path / "cut" / "c").manifest.has_sets
    assert litter(tmp_path / "cut" / "c") == []


@pytest.fixture(scope="module")
def near_whole(tmp_path_factory, hashes):
    """Sources with near duplicates, a test set, and the corpus made without a kill."""
    folder = tmp_path_factory.mktemp("near")
    for number in range(60):
        image = draw_scene(number % 40)
        image = image.resize((70, 70)) if number >= 40 else image
        (folder / f"f/{number % 2}").mkdir(parents=True, exist_ok=True)
        image.save(folder / f"f/{number % 2}/{number}.png")
    (folder / "t/a").mkdir(parents=True)
    for number in range(3):
        draw_scene(number).resize((80, 80)).save(folder / f"t/a/{number}.png")
    assert main(["prepare", "--labels", str(folder / "t"), "-o", str(folder / "test")]) == 0
    assert main(near_command(folder, folder / "whole/c")) == 0
    return folder, hashes(folder / "whole/c")


def near_command(folder, out):
    more = ("--dedup", "near", "--not-in", str(folder / "test"), "--workers", "1", "--holdout", "0.2")
    return command(out, *more, sources=("--labels", str(folder / "f")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "when"),
    [
        *(("not_in.arrow", "before"), (".near", "before"), (".sha256", "before"), ("duplicates.json", "before")),
        *(("00001.json", "before"), ("manifest.json", "before")),
    ],
)
def test_killed_while_near_duplicates_are_sought_the_same_command_ends_in_the_same_bytes(
    tmp_path, near_whole, hashes, suffix, when
):
    folder, whole = near_whole
    out = tmp_path / "c"
    argv = [sys.executable, "-c", REPLACE, suffix, when, *near_command(folder, out)]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert main(near_command(folder, out)) == 0
    assert hashes(out) == whole
    assert litter(out) == []
    rejected = open_corpus(out).manifest.rejected
    assert set(rejected) == {"in_other_corpus", "near_duplicate"}


STOPPED = """
import os, signal, sys
where, number, again = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "twice"
def strike():
    os.kill(os.getpid(), number)
    if again: os.kill(os.getpid(), number)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == where: strike()
sys.meta_path.insert(0, Finder())
def traced(frame, event, arg):
    if frame.f_code.co_name == where: strike()
sys.setprofile(traced)
from unicl_cli.cli import main
sys.exit(main(sys.argv[4:]))
"""
"""Is struck by a signal when a module is imported, or a function called."""


@pytest.mark.parametrize(
    ("where", "again"),
    [
        ("numpy", "once"),
        pytest.param("make_plan", "twice", marks=pytest.mark.slow),
        pytest.param("_group_units", "once", marks=pytest.mark.slow),
        ("write_unit", "twice"),
    ],
)
def test_stopped_in_any_phase_it_says_how_to_go_on_and_leaves_nothing_half_made(tmp_path, whole, hashes, where, again):
    """While libraries load, in planning, in comparing, in writing."""
    out = tmp_path / "deep" / "c"
    number = signal.SIGTERM if where in ("numpy", "_group_units") else signal.SIGINT
    argv = [sys.executable, "-c", STOPPED, where, str(int(number)), again, *command(out)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 75, done.stderr
    assert "  continue with: unicl" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [item for item in litter(tmp_path) if not item.endswith(".sha256")] == []
    assert out.exists() == (where in ("_group_units", "write_unit"))
    if where == "write_unit":
        assert main(command(out, "--workers", "1")) == 0
        assert hashes(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 5, 200])
def test_a_full_disk_is_one_line_without_litter_and_the_same_command_ends_in_the_same_bytes(
    tmp_path, whole, hashes, blocks
):
    """The limit meets plan, digests or shards; here it bounds single files."""
    out = tmp_path / "c"
    limited = ["bash", "-c", f'ulimit -f {blocks}; trap "" XFSZ; exec "$@"', "x"]
    argv = [*limited, sys.executable, "-m", "unicl_cli", *command(out, "--workers", "1")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"{out}: {os.strerror(errno.EFBIG)}" in done.stderr
    assert "then run the same command again to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert [item for item in litter(out) if not item.endswith(".sha256")] == []
    assert main(command(out, "--workers", "1")) == 0
    assert hashes(out) == whole


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of one megabyte, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs more rights")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_gets_full_is_one_line_and_with_room_the_same_command_goes_on(tiny_disk, workers):
    out = tiny_disk / "c"
    argv = ["prepare", "--labels", "shapes?count=1500&test=70", "--shard-mb", "1", "-o", out, "--workers", workers]
    done = unicl(argv)
    assert done.returncode == 2, done.stderr
    assert f"{out}: {os.strerror(errno.ENOSPC)}" in done.stderr
    assert "Traceback" not in done.stderr
    assert litter(out) == []
    assert not (out / "manifest.json").exists()
    estimated = unicl([*argv, "--dry-run"])
    assert estimated.returncode == 2
    assert "not enough disk space" in estimated.stderr
    subprocess.run(["mount", "-o", "remount,size=60m", tiny_disk], check=True)
    assert unicl(argv).returncode == 0
    assert unicl(["prepare", "--verify", "-o", out]).returncode == 0


@pytest.mark.slow
def test_two_prepares_on_one_directory_the_second_is_told_who_holds_it(tmp_path, leaves):
    out = tmp_path / "c"
    argv = ["prepare", "--labels", "shapes?count=20000", "--shard-mb", "1", "-o", out]
    first = begin(
        [sys.executable, "-m", "unicl_cli", *map(str, argv)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("parts/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        second = unicl(argv)
        assert second.returncode == 2
        assert re.search(rf"{re.escape(str(out))}: locked by pid {first.pid} on \S+", second.stderr), second.stderr
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert (out / ".lock").exists()
        third = begin(
            [sys.executable, "-m", "unicl_cli", *map(str, argv)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        done = len(list(out.glob("parts/*.json")))
        deadline = time.monotonic() + 60
        while len(list(out.glob("parts/*.json"))) <= done and time.monotonic() < deadline:
            time.sleep(0.05)
        third.send_signal(signal.SIGTERM)
        _, stderr = third.communicate(timeout=300)
        assert third.returncode == 75, stderr
        assert "shards are already written" in stderr
        assert leaves(third.pid)
        assert litter(out) == []
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_one_shard_and_no_more(tmp_path, hashes):
    """As the kernel does when memory runs out: the shard is begun again, the bytes are those of a quiet run."""
    argv = ["--labels", "shapes?count=6000&test=70", "--shard-mb", "1", "--json"]
    quiet = unicl(["prepare", *argv, "-o", tmp_path / "a" / "c"])
    out = tmp_path / "b" / "c"
    process = begin(
        [sys.executable, "-m", "unicl_cli", "prepare", *argv, "-o", str(out), "--workers", "2"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = ["pgrep", "-P", str(process.pid), "spawned"]
    workers = subprocess.run(children, capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "a worker died" in stderr
    assert json.loads(stdout)["rows"] == json.loads(quiet.stdout)["rows"] == 6070
    assert hashes(out) == hashes(tmp_path / "a" / "c")


@pytest.mark.slow
def test_a_folder_that_may_not_be_written_is_one_line():
    done = unicl(["prepare", "--labels", "digits?limit=9", "-o", "/proc/c"])  # nobody may write there, root neither
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "/proc/c: cannot be written" in done.stderr
