"""What a process does as one of several, who is blamed when one fails, and how a stop is heard."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from unicl_cli.errors import READER_GONE, Stopped, UniclError
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.elastic import Agent, describe_failure, exit_code_of
from unicl_cli.launch.nodes import call_in_thread
from unicl_cli.launch.plan import LAUNCHER, Launch, Nodes, decide
from unicl_cli.launch.process import is_peer, is_restarted, is_worker, run_and_report, run_in_workers
from unicl_cli.launch.slurm import requeue_on_usr1
from unicl_cli.launch.stopping import StopFlag, stop_signals

WORKER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
HERE = Launch("start", "", 2)
SPREAD = Launch("start", "", 1, Nodes(2, 1, "host:1"))


def failure(code, message="", *, timestamp=10, callstack="Traceback …\n"):
    """As torch elastic reports one that `record` has written down."""
    data = {"message": {"message": message, "extraInfo": {"py_callstack": callstack, "timestamp": timestamp}}}
    return SimpleNamespace(exitcode=code, message=data["message"], timestamp=timestamp, error_file_data=data)


def killed(number, timestamp=10):
    return SimpleNamespace(exitcode=-number, message=f"Signal {number}", timestamp=timestamp, error_file_data="<N/A>")


def blamed(*failures, launch=HERE):
    return exit_code_of(dict(enumerate(failures)), launch, "try again")


ECHO = failure(1, "RuntimeError: [gloo] Connection closed by peer", timestamp=5, callstack="echo\n")


ENDING = """
import atexit, sys, threading, time
from unicl_cli.launch.process import end_worker

class Late:
    def __del__(self):
        print("torn down", flush=True)

late = Late()
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
end_worker(75)
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("peers", "code", "said"),
    [(WORKER, 75, "thread\nregistered\n"), ({}, 3, "thread\nregistered\ntorn down\n")],
    ids=["worker", "alone"],
)
def test_a_worker_ends_without_teardown(peers, code, said):
    env = {name: value for name, value in os.environ.items() if name not in WORKER} | peers
    done = subprocess.run([sys.executable, "-c", ENDING], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


def test_a_worker_joins_and_one_process_goes_on(monkeypatch):
    for name, value in {**WORKER, "LOCAL_RANK": "1", "PMI_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNICL_ATTEMPT", "0")
    assert is_worker()
    assert is_peer()
    assert not is_restarted()
    monkeypatch.setenv("UNICL_ATTEMPT", "1")
    assert is_restarted()
    assert run_in_workers(decide(os.environ, "cpu:8", gpus=int), ["train"]) is None
    assert os.environ["MASTER_PORT"] == "29500"
    monkeypatch.setenv("RANK", "0")
    assert not is_peer()
    assert run_in_workers(decide(os.environ, "cpu:1", gpus=int, how="local"), ["train"]) is None
    left = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "PMI_SIZE"} & set(os.environ)
    assert not left, "accelerate would open a group"
    os.environ.pop("MASTER_PORT", None)


def test_who_dies_of_a_lost_connection_is_not_blamed(capsys):
    with pytest.raises(UniclError, match=r"rank 1 of 2 failed \(exit code 1\)") as caught:
        blamed(ECHO, failure(1, "ValueError: bad", timestamp=6, callstack="the cause\n"))
    assert capsys.readouterr().err == "the cause\n"
    assert caught.value.exit_code == 1


def test_who_was_told_to_leave_is_not_blamed():
    assert (
        describe_failure({0: killed(15, timestamp=1), 1: killed(9)}, HERE) == "rank 1 of 2 failed (killed by SIGKILL)"
    )


def test_a_killed_rank_is_named_with_its_signal():
    with pytest.raises(UniclError, match=r"rank 0 of 2 failed \(killed by SIGKILL\)"):
        blamed(killed(9))


def test_a_failure_on_another_node_is_named_without_a_traceback_of_this_one(capsys):
    with pytest.raises(UniclError, match="rank 1 of 2 lost the connection to another node") as caught:
        exit_code_of({1: ECHO}, SPREAD, "try again")
    assert capsys.readouterr().err == ""
    assert "every node" in caught.value.hint
    assert caught.value.exit_code == 1


def test_a_reader_that_leaves_is_reported_by_nobody(monkeypatch):
    """`unicl eval --devices 2 | head`: the error of rank 0 passes as it is, for `main` to turn into a status."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", LAUNCHER: "1"}.items():
        monkeypatch.setenv(name, value)

    def write():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_and_report(write)
    agent = SimpleNamespace(listener=SimpleNamespace(first=None), starts=1)
    assert Agent.exit_code(agent, {0: failure(READER_GONE), 1: killed(15, timestamp=1)}) == READER_GONE


@pytest.mark.parametrize("code", [2, 3])
def test_what_rank_zero_has_said_is_only_passed_on(code, capsys):
    assert blamed(failure(code, "UniclError: x"), killed(15, timestamp=1)) == code
    assert blamed(failure(code, "UniclError: x"), failure(code, "UniclError: x", timestamp=1)) == code
    assert blamed(failure(-15, "UniclError: x"), failure(code, "UniclError: x")) == code, "killed after its last word"
    assert capsys.readouterr().err == ""


def test_what_another_rank_alone_has_found_is_said():
    with pytest.raises(UniclError, match=r"^no such shard$") as caught:
        blamed(killed(15, timestamp=1), failure(2, "UniclError: no such shard"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_sets_the_flag_and_a_second_ctrl_c_ends_at_once(name):
    code = (
        "import os, signal, sys; from unicl_cli.launch.stopping import StopFlag\n"
        "stop = StopFlag(); stop.install(); assert not stop()\n"
        f"os.kill(os.getpid(), signal.{name}); assert stop() and stop.signal == signal.{name}\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('heard', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "heard\n"
    assert done.returncode == -signal.SIGINT


def test_what_nohup_has_silenced_stays_silent():
    code = "from unicl_cli.launch.stopping import stop_signals; print(*[s.name for s in stop_signals()])"
    shell = f"trap '' HUP INT; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SIGTERM", "SIGUSR1"]
    assert {number.name for number in stop_signals()} >= {"SIGTERM", "SIGHUP", "SIGUSR1"}


def test_a_signal_is_heard_while_torch_waits_for_a_store():
    """At a port that takes calls and never answers."""

    def leave(*_):
        raise TimeoutError("a signal")

    def meet():
        return TCPStore("127.0.0.1", deaf.getsockname()[1], is_master=False, timeout=timedelta(seconds=60))

    before = signal.signal(signal.SIGALRM, leave)
    try:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="a signal"):
                call_in_thread(meet)
        assert time.monotonic() - began < 30
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_is_waited_for_comes_back_with_its_error():
    assert call_in_thread(lambda: 3) == 3
    with pytest.raises(UniclError, match="two nodes"):
        call_in_thread(lambda: (_ for _ in ()).throw(UniclError("two nodes")))


def test_a_requeue_that_cannot_be_is_said_at_once(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with requeue_on_usr1(StopFlag(), wanted=True):
        said = capsys.readouterr().err
    assert said == "warning: --requeue: has no effect outside a SLURM job (SLURM_JOB_ID is not set)\n"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with requeue_on_usr1(StopFlag(), wanted=True):
        assert capsys.readouterr().err == ""


def test_a_flag_that_nobody_set_is_down():
    assert not StopFlag()()


def test_work_outside_a_launcher_keeps_its_own_errors():
    with pytest.raises(ZeroDivisionError):
        run_and_report(lambda: 1 / 0)
    seen = []
    run_and_report(lambda: seen.append(1))
    assert seen == [1]


def test_under_another_launcher_a_peer_says_what_it_alone_has_found(monkeypatch, capfd):
    for name, value in WORKER.items():
        monkeypatch.setenv(name, value)

    def failing(error):
        raise error

    with pytest.raises(UniclError):
        run_and_report(lambda: failing(UniclError("no such shard")))
    assert capfd.readouterr().err == "rank 1: no such shard\n"
    with pytest.raises(Stopped):
        run_and_report(lambda: failing(Stopped("stopped after step 3")))
    with pytest.raises(ZeroDivisionError):
        run_and_report(lambda: 1 / 0)
    assert capfd.readouterr().err == ""


def test_under_another_launcher_an_echo_is_one_line():
    code = (
        "from unicl_cli.launch.process import run_and_report\n"
        "def work(): raise RuntimeError('Connection closed by peer')\n"
        "run_and_report(work)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | WORKER, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "rank 1: lost the connection to a process that ended\n")


def test_a_worker_whose_launcher_is_gone_ends():
    """The poll, which other systems than Linux rely on: this process is not the launcher that is named."""
    code = (
        "import time; from unicl_cli.launch.process import decide_launch, run_in_workers\n"
        "print(run_in_workers(decide_launch('cpu:2'), []), flush=True); time.sleep(300)"
    )
    env = os.environ | WORKER | {LAUNCHER: "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, timeout=200, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_the_recipe_counts_and_not_what_accelerate_finds_in_the_environment(monkeypatch, capfd):
    from accelerate.state import AcceleratorState

    for precision, expected in (("auto", "no"), ("bf16", "bf16")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = start_accelerator(precision, "cpu")
        assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == (expected, 1)
        assert accelerator.device.type == "cpu"
        assert "ACCELERATE_USE_FSDP" not in os.environ
        names = "ACCELERATE_MIXED_PRECISION=fp16, ACCELERATE_GRADIENT_ACCUMULATION_STEPS=7, ACCELERATE_USE_FSDP=true"
        assert capfd.readouterr().err == f"warning: {names}: ignored: the recipe and the options of unicl decide\n"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_what_accelerate_launch_sets_in_agreement_is_no_warning(monkeypatch, capfd):
    from accelerate.state import AcceleratorState

    for name, value in {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "USE_CPU": "True"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    AcceleratorState._reset_state(reset_partial_state=True)
    start_accelerator("fp32", "cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert capfd.readouterr().err == ""
