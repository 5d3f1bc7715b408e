"""A rank, the launcher or everything killed at random moments: the same command ends in the same weights.

``RANDOM_KILLS=50`` kills so often; with fewer each kind still has its turn.
"""

import contextlib
import os
import random
import re
import signal
import time

import pytest
from launching import (
    AGAIN,
    begun,
    descendants,
    done,
    ended,
    gone,
    kill_all,
    nothing_half_written,
    ranks,
    same,
    steps_of,
)

KILLS = int(os.environ.get("RANDOM_KILLS", "3"))
KINDS = ("rank", "launcher", "everything")


def wait_for_a_moment(process, run, rng):
    """Most kills meet a run at work, a few one that starts; whether it was at work."""
    before = (steps_of(run) or [0])[-1]
    early = rng.random() < 0.2
    end = time.monotonic() + (rng.uniform(0, 1) if early else 180)
    while process.poll() is None and time.monotonic() < end:
        if (steps_of(run) or [0])[-1] not in (before, 0):
            time.sleep(rng.uniform(0, 0.3))
            return True
        time.sleep(0.01)
    return False


def killed(words, run, kind, rng):
    """Starts the command, kills -9 once, and sees to it that nothing is left; whether the run was at work."""
    process = begun(*words)
    at_work = wait_for_a_moment(process, run, rng)
    below, one = descendants(process.pid), None
    assert process.poll() is None, ended(process)[2]
    with contextlib.suppress(ProcessLookupError):
        if kind == "rank" and (workers := ranks(process.pid)):
            one = rng.choice(list(workers))
            os.kill(workers[one], signal.SIGKILL)
        elif kind == "launcher":
            process.kill()
        else:
            kill_all(process)
    code, _, err = ended(process)
    assert code in (1, -signal.SIGKILL), err
    if one is not None:
        assert re.search(rf"error: rank {one} of 2 failed \(killed by SIGKILL\)\n{re.escape(AGAIN)}$", err), err
    assert "Traceback" not in err, err
    assert gone(below, seconds=30), kind
    logged = steps_of(run)
    assert logged == list(range(1, len(logged) + 1))
    return at_work


@pytest.mark.slow
def test_killed_at_random_two_processes_end_in_the_same_weights(tmp_path, two, record_property):
    (file, whole), devices = two, ("--devices", "cpu:2", "-q")
    steps, rng = max(60, 20 * KILLS), random.Random(5)
    if steps > 60:
        whole = tmp_path / "whole"
        done("train", file, f"steps={steps}", "checkpoint.every=1000", "--run-dir", whole, *devices)
    run = tmp_path / "run"
    words = ("train", file, f"steps={steps}", "--run-dir", run, *devices)
    kinds = [KINDS[number % len(KINDS)] for number in range(KILLS)]
    rng.shuffle(kinds)
    at_work = sum(killed(words, run, kind, rng) for kind in kinds)
    record_property("kills of a run at work", at_work)
    print(f"{at_work} of {KILLS} kills met a run at work")
    done(*words)
    assert steps_of(run) == list(range(1, steps + 1)), "a step is logged once"
    assert same(run, whole)
    nothing_half_written(run)
