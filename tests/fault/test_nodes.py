"""Nodes, torchrun, accelerate launch and simulated SLURM on one machine: each trains what one process trains."""

import json
import os
import signal
import sys
import time

import pytest
from launching import (
    PLUGIN,
    begun,
    descendants,
    done,
    ended,
    free_port,
    gone,
    here,
    kill_all,
    max_difference,
    nothing_half_written,
    ranks,
    recipe,
    same,
    steps_of,
    until_open,
    until_step,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits):
    """(recipe, run on one process)."""
    folder = tmp_path_factory.mktemp("alone")
    file = recipe(folder, digits)
    here("train", file, "--run-dir", folder / "run", "--devices", "cpu:1", "-q")
    return file, folder / "run"


def together(file, run, port, rank, *more, devices="cpu:1", env=None):
    words = ["--nodes", 2, "--node-rank", rank, "--rdzv", f"127.0.0.1:{port}", *more]
    return begun("train", file, "--run-dir", run, "--devices", devices, "-q", *words, env=env)


def test_two_nodes_train_what_one_process_trains(tmp_path, alone):
    file, whole = alone
    port, run = free_port(), tmp_path / "run"
    nodes = [together(file, run, port, rank, devices="cpu:2") for rank in (1, 0)]  # in any order
    (second, out_1, err_1), (first, out_0, err_0) = (ended(node) for node in nodes)
    assert (first, second) == (0, 0), err_0 + err_1
    assert (out_0, out_1) == (f"{run}\n", ""), "rank 0 is where --node-rank 0 is"
    assert err_0 == ""
    assert err_1 == f"waiting for node 0 at 127.0.0.1:{port}\n"
    assert json.loads((run / "status.json").read_text())["world"] == 4
    assert max_difference(run, whole) < 1e-4


def test_a_node_that_is_killed_ends_the_other(tmp_path, digits):
    """The one at which the nodes meet; node 1 is lost in the tests below."""
    file, port, run = recipe(tmp_path, digits, steps=100000), free_port(), tmp_path / "run"
    nodes = [together(file, run, port, rank) for rank in (0, 1)]
    until_step(nodes[0], run, 2)
    below = [pid for node in nodes for pid in descendants(node.pid)]
    kill_all(nodes[0])
    code, _, err = ended(nodes[1], timeout=60)
    nodes[0].communicate()
    assert code == 1
    lines = [line for line in err.splitlines() if not line.startswith("waiting")]
    assert len(lines) == 2, err
    assert "lost" in lines[0]
    assert "run the same command on every node to continue" in lines[1]
    assert gone(below)


def test_a_node_whose_rank_fails_ends_another_that_waits(tmp_path, digits):
    """As collectives of NCCL do, which do not notice: they would wait for ten minutes."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    env = {"UNICL_PLUGINS": str(tmp_path / "plugin.py")}
    loss = "loss={name: failing, step: 3, how: raise while the other hangs}"
    file, port = recipe(tmp_path, digits), free_port()
    nodes = [together(file, tmp_path / "run", port, rank, loss, env=env) for rank in (0, 1)]
    below = set()
    while nodes[1].poll() is None:
        below.update(pid for node in nodes for pid in descendants(node.pid))
        time.sleep(0.2)
    (code_0, _, err_0), (code_1, _, err_1) = (ended(node, timeout=90) for node in nodes)
    assert (code_0, code_1) == (1, 1)
    assert "RuntimeError: the cat ate rank one" in err_1
    assert "rank 1 of 2 failed (exit code 1)" in err_1
    assert err_0.startswith(f"error: the 2 nodes lost each other at 127.0.0.1:{port}: another node has ended\n"), err_0
    assert gone(below)


def test_a_stop_at_one_node_stops_both(tmp_path, digits):
    file, port, run = recipe(tmp_path, digits, steps=100000), free_port(), tmp_path / "run"
    nodes = [together(file, run, port, rank) for rank in (0, 1)]
    until_step(nodes[0], run, 2)
    nodes[1].send_signal(signal.SIGINT)
    assert [ended(node)[0] for node in nodes] == [75, 75]
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


def test_a_node_that_comes_back_goes_on_with_the_others(tmp_path, two):
    """To the bits of two processes on one node."""
    (file, whole), port = two, free_port()
    run, more = tmp_path / "run", ("--max-restarts", 2)
    nodes = [together(file, run, port, rank, *more) for rank in (0, 1)]
    until_step(nodes[0], run, 5)
    kill_all(nodes[1])
    nodes[1].communicate()
    nodes[1] = together(file, run, port, 1, *more)
    codes, _, errs = zip(*(ended(node) for node in nodes), strict=True)
    assert codes == (0, 0), errs
    assert "rank 0 of 2 lost the connection to another node; all start again from the last checkpoint" in errs[0]
    assert same(run, whole)
    assert steps_of(run) == list(range(1, 61))


def test_nodes_that_cannot_meet_say_why_and_can_be_stopped(tmp_path, digits):
    file, port = recipe(tmp_path, digits), free_port()
    first = together(file, tmp_path / "run", port, 0)
    until_open(port)
    code, _, err = ended(together(file, tmp_path / "run", port, 0))
    assert code == 2
    assert f"error: --rdzv 127.0.0.1:{port}: " in err
    assert "Traceback" not in err
    first.send_signal(signal.SIGINT)  # it waits for node 1
    code, _, err = ended(first, timeout=30)
    assert (code, err.splitlines()[0]) == (75, "stopped while no worker was running")


def test_a_node_that_waits_for_another_to_come_back_can_be_stopped(tmp_path, digits):
    file, port, run = recipe(tmp_path, digits, steps=100000), free_port(), tmp_path / "run"
    nodes = [together(file, run, port, rank, "--max-restarts", 2) for rank in (0, 1)]
    until_step(nodes[0], run, 6)
    workers = ranks(nodes[0].pid).values()
    kill_all(nodes[1])
    nodes[1].communicate()
    assert gone(workers, seconds=60)
    time.sleep(5)
    nodes[0].send_signal(signal.SIGTERM)
    code, _, err = ended(nodes[0], timeout=30)
    assert (code, err.splitlines()[-2]) == (75, "stopped while no worker was running")
    nothing_half_written(run)


def test_nodes_with_different_recipes_are_told_so(tmp_path, digits):
    port, run = free_port(), tmp_path / "run"
    nodes = [together(recipe(tmp_path, digits, steps=steps), run, port, rank) for rank, steps in enumerate((5, 6))]
    for code, out, err in (ended(node) for node in nodes):
        assert (code, out) == (2, "")
        assert "error: the 2 nodes were given different recipes\n" in err
        assert "Traceback" not in err
    assert not run.exists()


def test_torchrun_and_accelerate_launch_are_joined(tmp_path, alone):
    file, whole = alone
    words = ["train", str(file), "--run-dir", str(tmp_path / "torchrun"), "--devices", "cpu", "-q"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "unicl_cli"]
    assert done(*words, command=torchrun) == f"{tmp_path / 'torchrun'}\n"
    assert max_difference(tmp_path / "torchrun", whole) < 1e-4
    words[3] = str(tmp_path / "accelerate")
    settings = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=bf16", "--dynamo_backend=no"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *settings, "-m", "unicl_cli"]
    code, _, err = ended(begun(*words, command=accelerate))
    assert code == 0, err
    assert "warning: ACCELERATE_MIXED_PRECISION=bf16: ignored" in err, "fp32 is what auto means on the CPU"
    assert max_difference(tmp_path / "accelerate", whole) < 1e-4


def slurm(rank, port, **more):
    """As `srun --ntasks=2` on one node sets them."""
    return {
        "SLURM_JOB_ID": str(port - 20000), "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", **more,
    }  # fmt: skip


def test_tasks_of_srun_join_each_other(tmp_path, alone):
    file, whole = alone
    port, run = 20000 + free_port() % 20000, tmp_path / "run"
    words = ["train", file, "--run-dir", run, "--devices", "cpu", "-q"]
    tasks = [ended(task) for task in [begun(*words, env=slurm(rank, port)) for rank in (0, 1)]]
    assert [task[:2] for task in tasks] == [(0, f"{run}\n"), (0, "")], tasks
    assert max_difference(run, whole) < 1e-4


def test_a_job_that_is_told_so_goes_back_into_the_queue(tmp_path, digits):
    """One task per node; SLURM sends SIGUSR1 to every process of a step."""
    tools = tmp_path / "bin"
    tools.mkdir()
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = show ] && echo localhost\nexit 0\n'
    (tools / "scontrol").write_text(script)
    (tools / "scontrol").chmod(0o755)
    file, run, port = recipe(tmp_path, digits, steps=100000), tmp_path / "run", 20000 + free_port() % 20000
    task = {"SLURM_NNODES": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    words = ["train", file, "--run-dir", run, "--devices", "cpu:1", "-q", "--requeue"]
    nodes = [begun(*words, env=slurm(rank, port, **task, SLURM_NODEID=str(rank)) | path) for rank in (0, 1)]
    until_step(nodes[0], run, 2)
    for node in nodes:
        node.send_signal(signal.SIGUSR1)
    results = [ended(node) for node in nodes]
    assert [code for code, _, _ in results] == [75, 75], results
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if not line.startswith("show")] == [f"requeue {port - 20000}"]
    assert f"job {port - 20000} is requeued" in results[0][2]
