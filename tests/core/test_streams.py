"""The standard streams of a command that has nobody to talk to."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import recipe

from unicl_cli.core.streams import hold_stderr

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
UNICL = (sys.executable, "-P", "-m", "unicl_cli")


def run(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, flags=()):
    command = [sys.executable, *flags, "-P", "-m", "unicl_cli", *map(str, line)]
    return subprocess.run(command, stdout=stdout, stderr=stderr, text=True, timeout=300, check=False)


def unread() -> int:
    """Return the writing end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.fixture
def nowhere(request):
    if request.param == "full disk":
        with Path("/dev/full").open("wb") as file:
            yield file
    else:
        writer = unread()
        yield writer
        os.close(writer)


@FULL
@pytest.mark.parametrize("nowhere", ["full disk", "no reader"], indirect=True)
def test_a_log_that_cannot_be_written_ends_no_training(tmp_path, digits, nowhere):
    file = recipe(tmp_path, digits, steps=2, every=1)
    done = run(["train", file, "--run-dir", tmp_path / "run", "--devices", "cpu:1"], stderr=nowhere)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run'}\n")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert (tmp_path / "run" / "meta.json").exists()


@pytest.mark.slow
@FULL
@pytest.mark.parametrize("nowhere", ["full disk", "no reader"], indirect=True)
@pytest.mark.parametrize(
    "line",
    [
        "train {recipe} --run-dir {root}/run --devices cpu:2",
        "eval {run} --data {corpus} --devices cpu:1",
        "eval {run} --data {corpus} --devices cpu:2",
        "probe {run} --data {corpus} --devices cpu:1",
        "zeroshot {root}/x.png --model {run} --classes cat,dog --devices cpu:1",
        "bench sampler --rounds 1",
        "inspect {corpus} --html {root}/i.html",
        "prepare --verify -o {corpus}",
    ],
)
def test_a_log_that_cannot_be_written_ends_no_command(tmp_path, digits, nowhere, line):
    from PIL import Image

    file = recipe(tmp_path, digits, steps=2, every=1)
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    assert run(["train", file, "--run-dir", tmp_path / "old", "--devices", "cpu:1"]).returncode == 0
    words = line.format(recipe=file, root=tmp_path, run=tmp_path / "old", corpus=digits).split()
    done = run(words, stderr=nowhere)
    assert done.returncode == 0
    assert done.stdout


@FULL
@pytest.mark.parametrize("nowhere", ["full disk", "no reader"], indirect=True)
def test_an_error_without_a_log_keeps_its_exit_code(tmp_path, nowhere):
    assert run(["recipes", "show", "quickstrat"], stderr=nowhere).returncode == 2
    assert run(["trian"], stderr=nowhere).returncode == 2
    out = tmp_path / "c"
    words = ["prepare", "--labels", "digits?limit=20", "-o", out]
    assert run(words, stderr=nowhere).returncode == 0
    assert (out / "manifest.json").exists()


@FULL
@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_an_answer_that_cannot_be_written_is_one_line(flags):
    with Path("/dev/full").open("wb") as full:
        done = run(["recipes", "ls"], stdout=full, flags=flags)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: standard output: No space left on device",
        "  hint: free some space, or write to another folder",
    ]
    with Path("/dev/full").open("wb") as full:
        assert run(["recipes", "ls"], stdout=full, stderr=full, flags=flags).returncode == 2


def test_a_reader_that_has_left_is_no_error():
    writer = unread()
    done = run(["recipes", "ls"], stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_streams_stay_what_they_were():
    """Encoding, errors and buffering; what is written to either comes in its order."""
    code = (
        "import sys; from unicl_cli.core.streams import protect_streams; old = sys.stdout, sys.stderr\n"
        "protect_streams(); new = sys.stdout, sys.stderr\n"
        "for a, b in zip(old, new):\n"
        "    assert a is not b and a.fileno() == b.fileno()\n"
        "    for name in ('encoding', 'errors', 'line_buffering', 'write_through'):\n"
        "        assert getattr(a, name) == getattr(b, name), name\n"
        "print('ä' * 100_000, flush=True); sys.stderr.write('one'); sys.stdout.write('two')\n"
    )
    for flags in ((), ("-u",)):
        done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, check=True)
        assert done.stdout.decode() == "ä" * 100_000 + "\ntwo"
        assert done.stderr == b"one"


def test_what_is_held_back_is_shown_unless_the_block_fails(capfd):
    with hold_stderr():
        os.write(2, b"one\n")
        os.write(2, b"two\n")
    with contextlib.suppress(KeyError), hold_stderr():
        os.write(2, b"panicked\n")
        raise KeyError
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "one\ntwo\nthree\n"
