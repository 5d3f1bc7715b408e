"""`prepare` into a server of S3: killed, begun twice, without a bucket or a server."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from forking import begin, complete
from object_store import files_in, serve_s3
from PIL import Image

from unicl_cli.cli import main

KILL = """
import os, signal, sys
from unicl_cli.storage.remote import RemoteOutput
upload = RemoteOutput.upload
def killed(path, file):
    if path.name.startswith("train.") and path.suffix == ".json": os.kill(os.getpid(), signal.SIGKILL)
    upload(path, file)
RemoteOutput.upload = killed
from unicl_cli.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""Dies when a shard of `train` is there, and its marker is not."""


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    server = serve_s3()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images that are large enough for a pool of processes, and the files of their corpus."""
    root = tmp_path_factory.mktemp("photos")
    noise = random.Random(0)
    for number in range(150):
        (root / f"f/{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (80, 80), noise.randbytes(19200)).save(root / f"f/{number % 2}/{number}.bmp")
    argv = ["prepare", "--labels", str(root / "f"), "--shard-mb", "1", "-o"]
    assert main([*argv, str(root / "c"), "-q"]) == 0
    return argv, files_in(root / "c")


def names(place):
    """The names of the objects: while a command writes, the next read of one may find it gone."""
    from fsspec.core import url_to_fs

    system, name = url_to_fs(place)
    system.invalidate_cache()
    return [found[len(name) + 1 :] for found in system.find(name)]


def objects(place):
    from fsspec.core import url_to_fs

    system, name = url_to_fs(place)
    return {found: system.cat_file(f"{name}/{found}") for found in names(place)}


def until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_between_shard_and_marker_the_same_command_ends_in_the_same_objects(s3, photos):
    argv, files = photos
    out = "s3://bucket/one/c"
    assert complete([sys.executable, "-c", KILL, *argv, out, "--workers", "1"]).returncode == -signal.SIGKILL
    left = objects(out)
    assert any(name.startswith("data/train/") for name in left)
    assert not any(name.startswith("parts/train") for name in left)
    assert ".lock" in left, "of a process that is gone"
    assert main([*argv, out, "--workers", "1"]) == 0
    assert objects(out) == files
    assert main(["prepare", "--verify", "-o", out]) == 0


@pytest.mark.slow
def test_a_second_prepare_is_refused_and_after_a_kill_the_pool_goes_on(s3, photos, capsys):
    argv, files = photos
    out = "s3://bucket/two/c"
    command = [sys.executable, "-m", "unicl_cli", *argv, out, "--workers", "2"]
    first = begin(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: ".lock" in names(out))
    assert main([*argv, out]) == 2
    assert f"error: {out}: locked by pid {first.pid} on " in capsys.readouterr().err
    until(lambda: any(name.startswith("parts/") for name in names(out)))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = complete(command)
    assert done.returncode == 0, done.stderr
    assert objects(out) == files


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["bucket", "server"])
def test_what_cannot_be_reached_is_one_line(s3, photos, fault):
    argv, _ = photos
    env = dict(os.environ) | ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"} if fault == "server" else {})
    out = "s3://no-such-bucket/c" if fault == "bucket" else "s3://bucket/c"
    done = complete([sys.executable, "-m", "unicl_cli", *argv, out], env=env)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {out}")
    assert ("The specified bucket does not exist" if fault == "bucket" else "Could not connect") in error
    assert "check the address" in hint
