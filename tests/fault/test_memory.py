"""Too little memory: a process that may map only so much more finds the rows at once that fit, on every rank alike."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from launching import begun, done, ended, here, max_difference, same

PLUGIN = '''
def limited(*, mib: float, only: int = -1):
    """UniCL's loss; once it is built, this process (or that of one rank) gets no more than ``mib`` more."""
    import os, resource
    from pathlib import Path
    from unicl_cli.losses.unicl import UniCL

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


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits):
    """A folder with the recipe and the plugin."""
    folder = tmp_path_factory.mktemp("memory")
    data = {**RECIPE["data"], "train": [{"corpus": str(digits)}]}
    (folder / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "data": data}))
    (folder / "plugin.py").write_text(PLUGIN)
    return folder


def limited(place, name, mib, *more, devices="cpu:1", only=-1):
    """(exit code, stderr) of `unicl train` into a run of that name, with so many MiB more."""
    words = ["--plugin", place / "plugin.py", "train", place / "r.yaml", "--run-dir", place / name, *more]
    loss = f"loss={{name: limited, mib: {mib}, only: {only}}}"
    code, _, err = ended(begun(*words, loss, "--devices", devices, "-q", env=TIGHT), timeout=500)
    return code, err


def free(place, name, *more, devices="cpu:1"):
    """A run with all the memory that there is."""
    words = ("train", place / "r.yaml", "--run-dir", place / name, *more, "--devices", devices, "-q")
    if devices == "cpu:1":
        here(*words)
    else:
        done(*words)
    return place / name


@pytest.fixture(scope="module")
def whole(place):
    return free(place, "whole")


def squeezed(place, name, limits, *more, **options):
    """(run into which a part of the batch fits, but not the whole, what it said).

    The limit for that depends on torch and on what the process has mapped already: the first one that does it.
    """
    for mib in limits:
        code, err = limited(place, f"{name}-{mib}", mib, *more, **options)
        if code == 0 and micro(place / f"{name}-{mib}") is not None:
            return place / f"{name}-{mib}", err
    raise AssertionError(err)


@pytest.fixture(scope="module")
def short(place):
    return squeezed(place, "short", (140, 115, 165, 190, 215))


def micro(run: Path):
    newest = (run / "checkpoints/latest").read_text()
    return json.loads((run / "checkpoints" / newest / "trainer.json").read_text())["micro"]


def test_a_batch_that_does_not_fit_is_encoded_in_parts_of_the_same_numbers(place, short, whole):
    run, err = short
    rows = micro(run)
    assert rows in (6, 12, 24)
    assert f"batch.micro: {rows} rows at once (of 48): more did not fit into " in err
    assert same(run, free(place, "byhand", f"batch.micro={rows}"))
    assert micro(whole) is None
    assert max_difference(run, whole) < 1e-4


def test_a_run_goes_on_with_the_rows_it_began_with(place, short):
    """Cut after step 2 and continued with all the memory there is: bit by bit what was never cut."""
    run, _ = short
    cut = free(place, "cut", "--resume", run / "checkpoints/step-00000002")
    assert micro(cut) == micro(run) is not None
    assert same(cut, run)


def test_all_ranks_follow_the_one_that_has_too_little(place):
    """Under DDP; under FSDP2 such a limit meets the threads of its backward first: see `test_rehearsal.py`.

    The images are large, so that the limit lies far above what the threads of torch need, which die without a word.
    """
    large = "data.image_size=160"
    run, err = squeezed(place, "one-short", (165, 190, 215, 240), large, devices="cpu:2", only=1)
    rows = micro(run)
    assert rows in (3, 6, 12)
    assert err.count(f"batch.micro: {rows} rows at once (of 24): more did not fit into ") == 1
    assert same(run, free(place, "two-byhand", large, f"batch.micro={rows}", devices="cpu:2"))
    assert max_difference(run, free(place, "whole-large", large)) < 1e-4


def test_what_cannot_fit_is_one_line(place):
    code, err = limited(place, "never", 8)
    assert code == 2, err
    assert "a step of 48 rows, 1 at once, does not fit into" in err
    assert "Traceback" not in err
    code, err = limited(place, "norm", 60, "model.image={name: timm, model: resnet18}")
    assert code == 2, err
    assert "its BatchNorm needs all rows at once" in err
