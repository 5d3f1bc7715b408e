"""What the tests of killed and stopped commands ask of a directory and of a process group."""

import hashlib
import json
import os
import time

import pytest
from launching import done, recipe


@pytest.fixture(scope="session")
def hashes():
    """``hashes(out)``: relative path -> sha256 of every file that a finished corpus keeps."""

    def of(out):
        files = [f for folder in ("data", "parts", "rejects") for f in (out / folder).rglob("*") if f.is_file()]
        found = {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
        manifest = json.loads((out / "manifest.json").read_text())
        return found | {"manifest": hashlib.sha256(json.dumps(manifest | {"name": ""}).encode()).hexdigest()}

    return of


@pytest.fixture(scope="session")
def two(tmp_path_factory, digits):
    """(recipe of 60 steps with a checkpoint at each, run of two processes that nothing disturbed)."""
    folder = tmp_path_factory.mktemp("two")
    file = recipe(folder, digits, steps=60, every=1, optimizer="adamw")
    done("train", file, "checkpoint.every=1000", "--run-dir", folder / "run", "--devices", "cpu:2", "-q")
    return file, folder / "run"


@pytest.fixture(scope="session")
def leaves():
    """``leaves(group)``: whether every process of the group is gone within 20 s."""

    def within(group):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False

    return within
