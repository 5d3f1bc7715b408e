"""Which processes a command runs in, who is blamed when one fails, and how a stop is heard."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from unicl_cli.core.launch import (
    LAUNCHER,
    StopFlag,
    blame,
    is_peer,
    is_worker,
    launched,
    processes,
    recorded,
    start_accelerator,
    was_stopped,
)
from unicl_cli.errors import UniclError

WORKER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


def failure(code, message="", *, timestamp=10, callstack="Traceback …\n"):
    """As torch elastic reports one that `record` has written down."""
    data = {"message": {"message": message, "extraInfo": {"py_callstack": callstack, "timestamp": timestamp}}}
    return SimpleNamespace(exitcode=code, message=data["message"], timestamp=timestamp, error_file_data=data)


def killed(number, timestamp=10):
    return SimpleNamespace(exitcode=-number, message=f"Signal {number}", timestamp=timestamp, error_file_data="<N/A>")


def blamed(*failures):
    return blame(SimpleNamespace(failures=dict(enumerate(failures))), len(failures))


@pytest.mark.parametrize(
    ("devices", "expected"), [("cpu:1", (1, True)), ("cpu", (1, True)), ("cpu:12", (12, True)), ("auto", (1, False))]
)
def test_devices_say_how_many_processes(devices, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert processes(devices) == expected


@pytest.mark.parametrize("devices", ["0", "cpu:0", "cpu:x", "tpu:2", "-1", "", "auto:2"])
def test_devices_that_are_nothing_are_named(devices):
    with pytest.raises(UniclError, match=f"--devices {devices}: unknown"):
        processes(devices)


def test_more_devices_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes("2") == processes("auto") == (2, False)
    with pytest.raises(UniclError, match="--devices 3: this machine shows 2 GPUs"):
        processes("3")


def test_a_worker_of_any_launcher_starts_nothing(monkeypatch):
    assert not is_worker()
    assert not is_peer()
    for name, value in WORKER.items():
        monkeypatch.setenv(name, value)
    assert is_worker()
    assert is_peer()
    assert launched("cpu:8", ["train"]) is None
    monkeypatch.setenv("RANK", "0")
    assert not is_peer()


def test_one_process_is_this_process():
    assert launched("cpu:1", ["train"]) is None


def test_who_dies_of_a_lost_connection_is_not_blamed(capsys):
    echo = failure(1, "RuntimeError: [gloo] Connection closed by peer", timestamp=5, callstack="echo\n")
    with pytest.raises(UniclError, match=r"rank 1 of 2 failed \(exit code 1\)") as caught:
        blamed(echo, failure(1, "ValueError: bad", timestamp=6, callstack="the cause\n"))
    assert capsys.readouterr().err == "the cause\n"
    assert caught.value.exit_code == 1


def test_a_killed_rank_is_named_with_its_signal():
    with pytest.raises(UniclError, match=r"rank 0 of 1 failed \(killed by SIGKILL\)"):
        blamed(killed(9))


@pytest.mark.parametrize("code", [2, 3])
def test_what_rank_zero_has_said_is_only_passed_on(code, capsys):
    assert blamed(failure(code, "UniclError: x"), killed(15, timestamp=1)) == code
    assert blamed(failure(code, "UniclError: x"), failure(code, "UniclError: x", timestamp=1)) == code
    assert capsys.readouterr().err == ""


def test_what_another_rank_alone_has_found_is_said():
    with pytest.raises(UniclError, match=r"^no such shard$") as caught:
        blamed(killed(15, timestamp=1), failure(2, "UniclError: no such shard"))
    assert caught.value.exit_code == 2


def test_a_stop_is_passed_on():
    assert blamed(failure(75, "Stopped: …"), failure(75, "Stopped: …")) == 75


def test_a_run_was_stopped_if_it_says_so_and_a_signal_ended_it(tmp_path):
    assert not was_stopped(tmp_path, 143)
    (tmp_path / "status.json").write_text('{"state": "stopped"}')
    assert was_stopped(tmp_path, 143)
    assert not was_stopped(tmp_path, 1)
    (tmp_path / "status.json").write_text('{"state": "running"}')
    assert not was_stopped(tmp_path, 143)
    (tmp_path / "status.json").write_text("{")
    assert not was_stopped(tmp_path, 143)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_sets_the_flag_and_a_second_ctrl_c_ends_at_once(name):
    code = (
        "import os, signal, sys; from unicl_cli.core.launch import StopFlag\n"
        "stop = StopFlag(); stop.install(); assert not stop()\n"
        f"os.kill(os.getpid(), signal.{name}); assert stop() and stop.signal == signal.{name}\n"
        "print('heard', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "heard\n"
    assert done.returncode == -signal.SIGINT


def test_a_flag_that_nobody_set_is_down():
    assert not StopFlag()()


def test_work_outside_a_launcher_keeps_its_own_errors():
    with pytest.raises(ZeroDivisionError):
        recorded(lambda: 1 / 0)
    seen = []
    recorded(lambda: seen.append(1))
    assert seen == [1]


def test_a_worker_whose_launcher_is_gone_ends():
    """The poll, which other systems than Linux rely on: this process is not the launcher that is named."""
    code = "import time; from unicl_cli.core.launch import launched; launched('cpu:2', []); time.sleep(30)"
    env = os.environ | WORKER | {LAUNCHER: "1"}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=20, check=False).returncode == 1


def test_precision_is_what_was_asked_for_whatever_accelerates_own_settings_say(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    for precision, expected in (("auto", "no"), ("bf16", "bf16")):
        accelerator = start_accelerator(precision, "cpu")
        assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == (expected, 1)
        assert accelerator.device.type == "cpu"
        AcceleratorState._reset_state(reset_partial_state=True)
