"""However two processes end, none is left, the exit code says what happened, and at most one traceback is shown."""

import json
import os
import pty
import random
import signal
import subprocess
import time

import pytest
from launching import (
    AGAIN,
    PLUGIN,
    UNICL,
    begun,
    descendants,
    done,
    ended,
    gone,
    here,
    nothing_half_written,
    ranks,
    recipe,
    running,
    same,
    steps_of,
    until_step,
)

pytestmark = pytest.mark.slow
TWO = ("--devices", "cpu:2", "-q")
NOHUP = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh", *UNICL)


def at_work(folder, digits, *more, before=(), command=UNICL):
    """A training of two processes that would go on for long, and the processes below it."""
    run = folder / "run"
    file = recipe(folder, digits, steps=100000)
    process = begun(*before, "train", file, "--run-dir", run, *TWO, *more, command=command)
    until_step(process, run, 2)
    below = descendants(process.pid)
    assert len(below) >= 2
    return process, run, below


def stopped(process, run, below, number, steps):
    """Stops a training by a signal: all of it ends, with a checkpoint."""
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, out) == (75, ""), err
    last = steps_of(run)[-1]
    assert err == f"stopped after step {last:,} of {steps:,}\n  run the same command again to continue\n"
    assert gone(below)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["signal"]) == ("stopped", last, number)
    assert (run / "checkpoints/latest").read_text() == f"step-{last:08d}"
    nothing_half_written(run)


def test_a_signal_stops_loader_workers_too_with_a_checkpoint(tmp_path, digits):
    """SIGUSR1; SIGTERM is below, and SIGINT is the second Ctrl-C."""
    process, run, below = at_work(tmp_path, digits, "data.workers=1")
    stopped(process, run, below, signal.SIGUSR1, 100000)


def test_a_terminal_that_closes_stops_all_with_a_checkpoint(tmp_path, digits):
    """Without --quiet: the last lines are written to a terminal that is gone."""
    run, file = tmp_path / "run", recipe(tmp_path, digits, steps=100000)
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["train", str(file), "--run-dir", str(run), "--devices", "cpu:2", "data.workers=1"]
        os.execv(UNICL[0], [*UNICL, *words])
    os.set_blocking(terminal, False)
    end = time.monotonic() + 180
    while not steps_of(run) and time.monotonic() < end:
        try:
            os.read(terminal, 10000)
        except BlockingIOError:
            time.sleep(0.05)
    below = descendants(pid)
    assert len(below) >= 2
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 75
    assert gone(below)
    assert json.loads((run / "status.json").read_text())["signal"] == signal.SIGHUP
    assert (run / "checkpoints/latest").is_file()


def test_a_rank_that_fails_is_named_once(tmp_path, digits):
    """One that is killed: `test_kills.py`."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    loss = "loss={name: failing, step: 3, how: raise}"
    file = recipe(tmp_path, digits)
    process = begun("--plugin", tmp_path / "plugin.py", "train", file, "--run-dir", tmp_path / "run", *TWO, loss)
    below = set()
    while process.poll() is None:
        below.update(descendants(process.pid))
        time.sleep(0.2)
    code, _, err = ended(process)
    assert code == 1
    assert err.endswith(f"error: rank 1 of 2 failed (exit code 1)\n{AGAIN}"), err
    assert err.count("Traceback") == err.count("RuntimeError: the cat ate rank one") == 1, err
    assert len(below) >= 2
    assert gone(below)


def test_when_the_launcher_is_killed_its_workers_write_a_checkpoint_and_end(tmp_path, digits):
    process, run, below = at_work(tmp_path, digits, "data.workers=1")
    assert len(below) >= 4
    process.kill()
    _, _, err = ended(process)
    assert gone(below, seconds=35)
    assert "Traceback" not in err
    assert "gloo" not in err
    assert (run / "checkpoints/latest").read_text() == f"step-{steps_of(run)[-1]:08d}"
    nothing_half_written(run)


def test_a_second_ctrl_c_does_not_wait_for_a_rank_that_hangs(tmp_path, digits):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    loss = "loss={name: failing, step: 3, how: hang}"
    process, _, below = at_work(tmp_path, digits, loss, before=("--plugin", tmp_path / "plugin.py"))
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # a scheduler that repeats itself changes nothing
    time.sleep(1)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert time.monotonic() - began < 10
    assert code == 130, err
    assert gone(below)
    assert "Traceback" not in err


def test_what_a_user_can_mend_is_said_once(tmp_path, digits):
    words = ["train", recipe(tmp_path, digits), "--run-dir", tmp_path / "run", *TWO, "loss=supcon", "--max-restarts", 3]
    code, _, err = ended(begun(*words))
    assert code == 2, err
    assert err.count("error:") == 1
    assert "needs several views of each image" in err
    assert "Traceback" not in err
    assert "again" not in err, "a mistake is not fixed by a new start"
    assert not (tmp_path / "run").exists(), "what has not begun leaves no run"


def test_nothing_is_left_in_the_temp_directory(tmp_path, digits):
    here("train", recipe(tmp_path, digits), "--run-dir", tmp_path / "run", "--devices", "cpu:1", "-q")
    (tmp_path / "temp").mkdir()
    env = {"TMPDIR": str(tmp_path / "temp")}
    done("eval", tmp_path / "run", *TWO, "--data", digits, env=env)
    left = [path.name for path in (tmp_path / "temp").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")], "torch keeps one cache there"


def test_a_rank_that_is_killed_costs_a_restart_and_no_number(tmp_path, two):
    (file, whole), run = two, tmp_path / "run"
    words = ["train", file, "--run-dir", run, *TWO, "--max-restarts", 1, "--resume", "never"]
    process = begun(*words)
    until_step(process, run, 5)
    os.kill(ranks(process.pid)[1], signal.SIGKILL)
    code, out, err = ended(process)
    assert (code, out) == (0, f"{run}\n"), err
    assert "warning: rank 1 of 2 failed (killed by SIGKILL); all start again from the last checkpoint" in err
    assert "(0 more restarts)" in err
    assert same(run, whole)
    assert steps_of(run) == list(range(1, 61))
    nothing_half_written(run)


def test_two_processes_that_are_stopped_go_on_to_the_same_weights(tmp_path, two):
    """By SIGTERM, after a hangup that nohup has silenced."""
    (file, whole), run = two, tmp_path / "run"
    words = ["train", file, "--run-dir", run, *TWO, "checkpoint.every=1000"]
    process = begun(*words, command=NOHUP)
    until_step(process, run, 3)
    below = descendants(process.pid)
    process.send_signal(signal.SIGHUP)
    until_step(process, run, steps_of(run)[-1] + 5)
    stopped(process, run, below, signal.SIGTERM, 60)
    done(*words)
    assert same(run, whole)
    assert steps_of(run) == list(range(1, 61))


def test_a_signal_at_any_early_moment_leaves_nothing_half_written(tmp_path, digits):
    """One process, as PID 1 of a container would be: heard at once, or dead of it."""
    file, rng = recipe(tmp_path, digits, steps=100000, every=1), random.Random(0)
    codes, before = [], set(descendants(os.getpid()))  # those of other tests' pools
    for number in range(3):
        run = tmp_path / f"run-{number}"
        words = ("train", file, "--run-dir", run, "--devices", "cpu:1", "-q")
        process = begun(*words, start=subprocess.Popen)
        time.sleep(rng.uniform(0, 6))
        process.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
        assert code in (75, -signal.SIGTERM), err
        assert "Traceback" not in err
        nothing_half_written(run)
        codes.append(code)
    print(codes)
    assert not running(set(descendants(os.getpid())) - before)
