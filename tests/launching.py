"""What tests of launchers share: commands in processes of their own, what is left of them, and weights side by side."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from forking import begin
from safetensors.torch import load_file

from unicl_cli.cli import main

TINY = {
    "data": {"image_size": 16, "augment": {"name": "shift"}},
    "model": {
        "image": {"name": "cnn", "width": 8, "stages": 2},
        "text": {"name": "transformer", "width": 16, "layers": 1, "heads": 2},
        "embed_dim": 16,
        "tokenizer": "corpus",
        "context_length": 16,
    },
    "batch": {"size": 12},
    "steps": 8,
    "optim": {"lr": 1e-3},
    "schedule": {"warmup": 2},
    "log": {"every": 1},
    "checkpoint": {"every": 3, "keep": 2},
}
"""The recipe of most runs in tests, but for its corpus."""
PLUGIN = """
from unicl_cli.api import rank

def failing(*, step: int, how: str):
    import os, signal, time
    from unicl_cli.losses.unicl import UniCL

    class Failing(UniCL):
        seen = 0
        def forward(self, model, batch):
            self.seen += 1
            if self.seen > step and how == "raise while the other hangs" and rank() == 0:
                time.sleep(1000)
            if self.seen > step and rank() == 1:
                if how.startswith("raise"):
                    raise RuntimeError("the cat ate rank one")
                if how == "hang":
                    time.sleep(1000)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(model, batch)
    return Failing()

PARTS = {"losses": {"failing": failing}}
"""
UNICL = (sys.executable, "-m", "unicl_cli")
AGAIN = "  hint: run the same command again to continue from the last checkpoint\n"
"""The end of what is said after a rank has failed."""


def recipe(folder, corpus, *, steps=10, every=5, optimizer="sgd", **changes):
    """The file of a tiny recipe with some sections changed."""
    whole = TINY | {
        "data": TINY["data"] | {"train": [{"corpus": str(corpus)}]},
        "steps": steps,
        "optim": {"name": optimizer, "lr": 0.01},
        "schedule": {"warmup": 5},
        "checkpoint": {"every": every, "keep": 2},
    }
    file = folder / f"recipe-{steps}-{every}-{optimizer}.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(whole | changes))))  # without YAML's anchors
    return file


def here(*words):
    """A command in this process, which spares it seconds of imports; it has to succeed."""
    assert main(list(map(str, words))) == 0


def begun(*words, command=UNICL, env=None, start=begin):
    """A command at work, in a session of its own; ``start=subprocess.Popen`` for a test of how it starts."""
    return start(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | (env or {}),
    )


def ended(process, timeout=300):
    """(exit code, stdout, stderr); what does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    return process.returncode, out, err


def done(*words, command=UNICL, env=None):
    """The same for a command from its start on, which has to succeed: stdout."""
    code, out, err = ended(begun(*words, command=command, env=env))
    assert code == 0, err
    return out


def kill_all(process):
    """-9 for a command and everything that it has started."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid):
    """Process ids below ``pid``."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def ranks(pid):
    """Rank -> process id of the workers below ``pid``, as `forking.py` names them."""
    found = {}
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{child}/comm").read_text().strip()
            if re.fullmatch(r"rank\d+", name):
                found[int(name.removeprefix("rank"))] = child
    return found


def running(pids):
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                alive.append(pid)
    return alive


def gone(pids, seconds=15):
    """Whether all of them end in time."""
    end = time.monotonic() + seconds
    while running(pids) and time.monotonic() < end:
        time.sleep(0.1)
    return not running(pids)


def steps_of(run):
    """The steps in metrics.jsonl, as they stand there."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def until_step(process, run, step, seconds=180):
    """Waits until ``step`` is logged; a process that ends before fails the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if (steps_of(run) or [0])[-1] >= step:
            return
        time.sleep(0.02)
    kill_all(process)
    raise AssertionError(process.communicate()[1])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until_open(port, seconds=120):
    """Waits until somebody listens there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at {port}")


def max_difference(one, other):
    """The largest difference between the weights of two runs."""
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def same(one, other, name="model.safetensors"):
    """Are the weights of two runs bit-equal?"""
    a, b = (load_file(run / name) for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_rows(one, other):
    """Do the logs of two runs say the same, but for the time it took?"""
    rows = [list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines())) for run in (one, other)]
    drop = ("time", "img_s", "data_frac", "mem_gb", "eta_s")
    one, other = ([{key: v for key, v in row.items() if key not in drop} for row in each] for each in rows)
    return one == other


def nothing_half_written(run):
    """No temporary file is left, and what claims to be JSON is."""
    assert not [file for pattern in ("*.tmp", "*.part") for file in run.rglob(pattern)]
    for file in run.glob("*.json"):
        json.loads(file.read_text())
