"""Too little memory: a process that may map only so much more finds the rows at once that fit, on every rank alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

PLUGIN = '''
def limited(*, mib: float, only: int = -1):
    """UniCL's loss; once it is built, this process (or that of one rank) gets no more than ``mib`` more."""
    import os, resource
    from pathlib import Path
    from unicl_cli.losses import UniCL

    free = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    if mib and free and only in (-1, int(os.environ.get("RANK", "0"))):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + int(mib * 2**20),) * 2)
    return UniCL()

PARTS = {"losses": {"limited": limited}}
'''
RECIPE = {
    "data": {"image_size": 96, "augment": "none"},
    "model": {
        "image": {"name": "cnn", "width": 64, "stages": 2},
        "text": {"name": "transformer", "width": 32, "layers": 1, "heads": 2},
        "embed_dim": 32, "tokenizer": "corpus", "context_length": 16,
    },
    "batch": {"size": 48}, "steps": 3, "optim": {"lr": 1e-3}, "schedule": {"warmup": 1}, "checkpoint": {"every": 2},
    "log": {"every": 1},
}  # fmt: skip
TIGHT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back: the limit is exact
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")]


@pytest.fixture
def train(tmp_path, digits):
    """(exit code, stderr) of `unicl train` into a run of that name, with so many MiB more."""
    data = {**RECIPE["data"], "train": [{"corpus": str(digits)}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "data": data}))
    (tmp_path / "plugin.py").write_text(PLUGIN)

    def run(name, mib, *more, devices="cpu:1", only=-1):
        words = ["--plugin", "plugin.py", "train", "r.yaml", f"loss={{name: limited, mib: {mib}, only: {only}}}"]
        done = subprocess.run(
            [sys.executable, "-m", "unicl_cli", *words, *more, "--run-dir", name, "--devices", devices, "-q"],
            cwd=tmp_path, env=os.environ | TIGHT, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    return run


def micro(run: Path):
    newest = (run / "checkpoints/latest").read_text()
    return json.loads((run / "checkpoints" / newest / "trainer.json").read_text())["micro"]


def furthest(a: Path, b: Path) -> float:
    one, other = (load_file(run / "model.safetensors") for run in (a, b))
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_a_batch_that_does_not_fit_is_encoded_in_parts_of_the_same_numbers(train, tmp_path):
    code, err = train("short", 200)
    assert code == 0, err
    rows = micro(tmp_path / "short")
    assert rows in (6, 12, 24)
    assert f"batch.micro: {rows} rows at once (of 48): more did not fit into " in err
    assert train("byhand", 0, f"batch.micro={rows}")[0] == 0
    assert furthest(tmp_path / "short", tmp_path / "byhand") == 0
    assert train("whole", 0)[0] == 0
    assert micro(tmp_path / "whole") is None
    assert furthest(tmp_path / "short", tmp_path / "whole") < 1e-4


def test_a_run_goes_on_with_the_rows_it_began_with(train, tmp_path):
    """Cut after step 2 and continued with all the memory there is: bit by bit what was never cut."""
    assert train("whole", 200)[0] == 0
    run = tmp_path / "whole"
    cut = run / "checkpoints/step-00000002"
    code, err = train("cut", 0, "--resume", str(cut))
    assert code == 0, err
    assert micro(tmp_path / "cut") == micro(run) is not None
    assert furthest(tmp_path / "cut", run) == 0


def test_all_ranks_follow_the_one_that_has_too_little(train, tmp_path):
    """Under DDP; under FSDP2 such a limit meets the threads of its backward first: see `test_rehearsal.py`."""
    code, err = train("short", 100, devices="cpu:2", only=1)
    assert code == 0, err
    rows = micro(tmp_path / "short")
    assert rows in (3, 6, 12)
    assert err.count(f"batch.micro: {rows} rows at once (of 24): more did not fit into ") == 1
    assert train("byhand", 0, f"batch.micro={rows}", devices="cpu:2")[0] == 0
    assert furthest(tmp_path / "short", tmp_path / "byhand") == 0
    assert train("one", 0)[0] == 0
    assert furthest(tmp_path / "short", tmp_path / "one") < 1e-4


def test_what_cannot_fit_is_one_line(train):
    code, err = train("never", 8)
    assert code == 2, err
    assert "a step of 48 rows, 1 at once, does not fit into" in err
    assert "Traceback" not in err
    code, err = train("norm", 60, "model.image={name: timm, model: resnet18}")
    assert code == 2, err
    assert "its BatchNorm needs all rows at once" in err
