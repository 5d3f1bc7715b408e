"""The standard streams of a command that has nobody to talk to."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forking import complete
from launching import here, recipe
from PIL import Image

from unicl_cli.storage.streams import hold_stderr

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


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits):
    """The files that the words of a command line stand for: a corpus, a recipe, a run of it, a folder with an image."""
    root = tmp_path_factory.mktemp("made")
    file = recipe(root, digits, steps=2, every=1)
    here("train", file, "--run-dir", root / "run", "--devices", "cpu:1", "-q")
    Image.new("RGB", (16, 16)).save(root / "x.png")
    return {"recipe": file, "root": root, "run": root / "run", "corpus": digits}


@pytest.mark.slow
@FULL
@pytest.mark.parametrize(
    ("line", "nowhere"),
    [
        ("train {recipe} --run-dir {root}/two --devices cpu:2", "full disk"),
        ("eval {run} --data {corpus} --devices cpu:1", "no reader"),
        ("eval {run} --data {corpus} --devices cpu:2", "full disk"),
        ("probe {run} --data {corpus} --devices cpu:1", "no reader"),
        ("zeroshot {root}/x.png --model {run} --classes cat,dog --devices cpu:1", "full disk"),
        ("bench sampler --sizes 2e7 --rounds 1 --no-peak", "no reader"),
        ("inspect {corpus} --html {root}/i.html", "full disk"),
        ("prepare --verify -o {corpus}", "no reader"),
    ],
    indirect=["nowhere"],
)
def test_a_log_that_cannot_be_written_ends_no_command(made, nowhere, line):
    done = complete([*UNICL, *line.format(**made).split()], stderr=nowhere)
    assert done.returncode == 0
    assert done.stdout


@FULL
@pytest.mark.parametrize(
    ("nowhere", "work"),
    [pytest.param("full disk", "train", marks=pytest.mark.slow), ("no reader", "prepare")],
    indirect=["nowhere"],
)
def test_without_a_log_errors_keep_their_exit_codes_and_work_is_done(tmp_path, digits, nowhere, work):
    """One process, which spares each command seconds of imports."""
    words = {
        "prepare": f"--labels digits?limit=20 -o {tmp_path / 'done'}",
        "train": f"{recipe(tmp_path, digits, steps=2, every=1)} --run-dir {tmp_path / 'done'} --devices cpu:1",
    }
    lines = ["recipes show quickstrat", "trian", f"{work} {words[work]}"]
    code = "import sys; from unicl_cli.cli import main; print([main(line.split()) for line in sys.argv[1:]])"
    command = [sys.executable, "-c", code, *lines]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=nowhere, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[-1] == "[2, 2, 0]"
    assert (tmp_path / "done" / {"prepare": "manifest.json", "train": "meta.json"}[work]).exists()
    assert run(["recipes", "show", "quickstrat"], stderr=nowhere).returncode == 2


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
        "import sys; from unicl_cli.storage.streams import protect_streams; old = sys.stdout, sys.stderr\n"
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
