"""Killed at any moment, the same `prepare` command ends in the same bytes; stopped politely, it says how to go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from forking import begin, complete

SOURCE = ("--labels", "shapes?count=900&test=200", "--captions", "shapes?count=700&test=100", "--shard-mb", "1")


def command(out, *more):
    return [sys.executable, "-m", "unicl_cli", "prepare", *SOURCE, "-o", str(out), *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, hashes):
    """Hashes of an undisturbed run, and how long it takes."""
    out = tmp_path_factory.mktemp("whole") / "c"
    began = time.monotonic()
    complete(command(out, "--workers", "1"), check=True)
    return hashes(out), time.monotonic() - began


def killed_after(seconds, argv):
    """Start a process group, kill -9 all of it after so many seconds; whether it was still alive."""
    process = begin(argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def killed_until_done(out, whole, hashes, times, seed, workers):
    truth, seconds = whole
    rng = random.Random(seed)
    for _ in range(times):
        killed_after(rng.uniform(0.3, 1.0) * seconds, command(out, "--workers", workers))
    done = complete(command(out, "--workers", workers, "--json"), check=True)
    assert json.loads(done.stdout)["rows"] == 1900
    assert hashes(out) == truth
    assert not list(out.rglob("*.tmp"))


def test_killed_twice_the_same_command_ends_in_the_same_bytes(tmp_path, whole, hashes):
    killed_until_done(tmp_path / "c", whole, hashes, times=2, seed=0, workers="1")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_random_moments_the_shards_are_the_same(tmp_path, whole, hashes, workers):
    for trial in range(int(os.environ.get("RANDOM_KILLS", "2"))):
        killed_until_done(tmp_path / str(trial), whole, hashes, times=1, seed=100 + trial, workers=workers)


@pytest.mark.slow
def test_workers_leave_when_only_their_parent_is_killed(tmp_path, whole, hashes, leaves):
    """The parent alone gets SIGKILL; its orphans must go, and the next run ends in the same bytes."""
    out = tmp_path / "c"
    process = begin(command(out, "--workers", "2"), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((out / "parts").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert leaves(process.pid)
    complete(command(out, "--workers", "2"), check=True)
    assert hashes(out) == whole[0]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_by_a_signal_it_exits_75_and_prints_the_command_that_goes_on(tmp_path, number):
    out = tmp_path / "c"
    argv = [sys.executable, "-m", "unicl_cli", "prepare", "--labels", "shapes?count=20000", "-o", str(out),
            "--shard-mb", "1", "--workers", "1"]  # fmt: skip
    process = begin(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 75, stderr
    assert stdout == ""
    assert f"unicl prepare --labels 'shapes?count=20000' -o {out} --shard-mb 1 --workers 1" in stderr
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()


@pytest.mark.slow
def test_a_pool_is_stopped_by_a_signal_to_its_whole_group(tmp_path, leaves):
    out = tmp_path / "c"
    argv = [sys.executable, "-m", "unicl_cli", "prepare", "--labels", "shapes?count=20000", "-o", str(out),
            "--shard-mb", "1", "--workers", "2"]  # fmt: skip
    process = begin(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 75, stderr
    assert "Traceback" not in stderr
    assert leaves(process.pid)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_a_unit_that_kills_twice_is_named(tmp_path):
    plugin = tmp_path / "deadly.py"
    plugin.write_text(
        "import io, os, pathlib\n"
        "from unicl_cli.api import ClassName, Row\n"
        "class Deadly:\n"
        "    splits, classes, templates = ('train', 'test'), (ClassName('a', ('a',)),), ('{}',)\n"
        "    def __init__(self, once): self.once = once\n"
        "    def rows(self, split): return [Row(f'{split}{n}', str(n), (), 0) for n in range(300)]\n"
        "    def read(self, row):\n"
        "        mark = pathlib.Path(self.once)\n"
        "        if row.key == 'deadly:train77' and not mark.exists():\n"
        "            if self.once != 'never': mark.touch()\n"
        "            os._exit(9)\n"
        "        from PIL import Image\n"
        "        out = io.BytesIO(); Image.new('RGB', (100, 100)).save(out, 'BMP')\n"
        "        return {'image': out.getvalue()}\n"
        "def deadly(*, once: str): return Deadly(once)\n"
        "PARTS = {'datasets': {'deadly': deadly}}\n"
    )

    def run(out, once):
        argv = ["--plugin", plugin, "prepare", "--labels", f"deadly?once={once}", "-o", tmp_path / out,
                "--shard-mb", 2, "--workers", 2]  # fmt: skip
        return complete([sys.executable, "-m", "unicl_cli", *map(str, argv)])

    mended = run("a", tmp_path / "mark")
    assert mended.returncode == 0, mended.stderr
    assert (tmp_path / "mark").exists()
    doomed = run("b", "never")
    assert doomed.returncode == 2, doomed.stderr
    assert "died twice" in doomed.stderr
    assert "data/train/deadly-labels-" in doomed.stderr
