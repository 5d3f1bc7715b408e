"""Which processes a command runs in, decided over simulated environments."""

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.launch.plan import LAUNCHER, Nodes, decide, parse_nodes
from unicl_cli.launch.slurm import expand_hosts, in_step, list_hosts, tasks_per_node

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "7", "LOCAL_RANK": "1"}
SRUN = {  # the second task of the second of two nodes with two tasks each
    "SLURM_JOB_ID": "41007", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_NNODES": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip
PER_NODE = SRUN | {
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip


def never():
    raise AssertionError("the GPUs were counted, which costs an import of torch")


def decided(environ, devices="auto", *, gpus=0, **options):
    return decide(environ, devices, gpus=(lambda: gpus) if isinstance(gpus, int) else gpus, **options)


@pytest.mark.parametrize(
    ("devices", "gpus", "words"),
    [
        ("auto", 0, "works in this process (on the CPU)"),
        ("auto", 1, "works in this process (on one GPU)"),
        ("auto", 8, "starts 8 processes here (8 GPUs)"),
        ("2", 8, "starts 2 processes here (2 GPUs)"),
        ("1", 8, "works in this process (on one GPU)"),
        ("cpu", never, "works in this process (on the CPU)"),
        ("cpu:1", never, "works in this process (on the CPU)"),
        ("cpu:3", never, "starts 3 processes here (--devices cpu:3)"),
    ],
)
def test_a_plain_machine(devices, gpus, words):
    launch = decided({"PATH": "/bin", "MASTER_ADDR": "left over"}, devices, gpus=gpus)
    assert launch.describe() == words
    assert launch.world == launch.processes
    assert not launch.note


@pytest.mark.parametrize("devices", ["0", "cpu:0", "cpu:x", "tpu:2", "-1", "", "auto:2", "²"])
def test_devices_that_are_nothing_are_named(devices):
    with pytest.raises(UniclError, match=f"--devices {devices}: unknown"):
        decided({}, devices, gpus=never)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UniclError, match="--devices 3: this machine shows 2 GPUs"):
        decided({}, "3", gpus=2)


def test_a_worker_of_any_launcher_starts_nothing():
    launch = decided(TORCHRUN, "cpu:8", gpus=never)
    assert (launch.how, launch.world) == ("worker", 4)
    assert launch.environ == TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}
    assert launch.describe() == "joins as rank 3 of 4 (the launcher's variables)"


def test_a_worker_without_a_local_rank_gets_one():
    """Kubernetes sets three variables; accelerate would take the process for the only one."""
    launch = decided({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, gpus=never)
    assert launch.environ["LOCAL_RANK"] == "0"
    assert launch.environ["MASTER_PORT"] == "29500"


def test_half_a_launcher_is_an_error_where_many_would_train_the_same():
    with pytest.raises(UniclError, match="MASTER_ADDR: not set, though RANK and WORLD_SIZE are"):
        decided({"RANK": "1", "WORLD_SIZE": "2"})
    assert decided({"RANK": "0", "WORLD_SIZE": "1"}).how == "alone"
    assert decided({"RANK": "1"}).how == "alone"


def test_one_task_of_srun_for_each_gpu():
    launch = decided(SRUN, gpus=4)
    assert launch.environ == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": str(20000 + 41007 % 20000),
    }  # fmt: skip
    assert launch.describe() == "joins as rank 3 of 4 (srun)"
    assert decided(SRUN, "cpu", gpus=never).environ == launch.environ
    assert decided(SRUN, gpus=1).environ["LOCAL_RANK"] == "0", "SLURM shows each task its own GPU alone"
    assert decided(SRUN | {"MASTER_ADDR": "b", "MASTER_PORT": "9"}).environ["MASTER_ADDR"] == "b"


def test_one_task_of_srun_for_each_node():
    launch = decided(PER_NODE, gpus=8)
    assert launch[:4] == ("start", "srun, one task per node", 8, Nodes(2, 1, "gpu07:21007"))
    assert launch.world == 16
    assert launch.describe() == (
        "starts 8 processes here as node 1 of 2, rendezvous at gpu07:21007 (srun, one task per node)"
    )
    assert decided(PER_NODE, gpus=1).how == "worker"
    assert decided(PER_NODE, "cpu:2", gpus=never).processes == 2


@pytest.mark.parametrize("change", [{"SLURM_STEP_ID": ""}, {"SLURM_STEP_ID": "batch"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_what_a_job_has_asked_for_makes_no_worker(change):
    launch = decided(SRUN | change, gpus=2)
    assert launch.how == "start"
    assert launch.processes == 2
    assert launch.note == "using one of the 2 nodes of this job; to use all: srun unicl train …"
    assert not decided(SRUN | change | {"SLURM_NNODES": "1"}, gpus=2).note


def test_slurms_variables_that_make_no_sense_are_one_line():
    for change in ({"SLURM_STEP_TASKS_PER_NODE": "x"}, {"SLURM_NODEID": "5"}, {"SLURM_LOCALID": "?"}):
        with pytest.raises(UniclError, match="the variables of SLURM cannot be read"):
            decided(SRUN | change)


def test_nodes_by_hand():
    launch = decided({}, gpus=8, nodes=parse_nodes(2, 1, "host:29400"))
    assert launch.describe() == "starts 8 processes here as node 1 of 2, rendezvous at host:29400 (--nodes 2)"
    assert launch.world == 16
    assert decided({}, gpus=0, nodes=parse_nodes(2, 0, "[::1]:29400")).processes == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((2, None, None), "must be given together"),
        ((None, 1, None), "must be given together"),
        ((None, None, "h:1"), "must be given together"),
        ((2, 2, "h:1"), "--node-rank 2: there are nodes 0 to 1"),
        ((2, 0, "host"), "--rdzv host: not of the form HOST:PORT"),
        ((2, 0, "ho st:1"), "not of the form HOST:PORT"),
        ((2, 0, ":29400"), "not of the form HOST:PORT"),
        ((2, 0, "h:99999"), "not of the form HOST:PORT"),
    ],
)
def test_half_of_the_options_for_nodes_is_an_error(given, said):
    with pytest.raises(UniclError, match=said):
        parse_nodes(*given)


def test_one_node_needs_no_options():
    assert parse_nodes(None, None, None) is parse_nodes(1, None, None) is parse_nodes(1, 0, None) is None


def test_the_guess_can_be_overruled():
    assert decided(TORCHRUN, gpus=0, how="local").how == "alone"
    assert decided(SRUN, gpus=2, how="local").how == "start"
    assert decided(SRUN | TORCHRUN, gpus=2, how="slurm").why == "srun"
    assert decided(SRUN | TORCHRUN, gpus=never, how="worker").why == "the launcher's variables"
    with pytest.raises(UniclError, match="--launch worker: RANK and WORLD_SIZE not set"):
        decided({"MASTER_ADDR": "a"}, how="worker")
    with pytest.raises(UniclError, match="--launch mpi: unknown"):
        decided({}, how="mpi")


def test_a_process_that_unicl_started_is_a_worker_whatever_its_options_say():
    """It has the same options as its launcher: it would start others without end."""
    for options in ({"how": "local"}, {"how": "slurm"}, {"nodes": Nodes(2, 0, "h:1")}):
        assert decided(SRUN | TORCHRUN | {LAUNCHER: "1"}, "cpu:2", gpus=never, **options).how == "worker"


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("login", ["login"]),
        ("gpu1,gpu2", ["gpu1", "gpu2"]),
        ("gpu[1-3]", ["gpu1", "gpu2", "gpu3"]),
        ("gpu[001-003,7],login", ["gpu001", "gpu002", "gpu003", "gpu7", "login"]),
        ("r[1-2]n[09-10]-ib", ["r1n09-ib", "r1n10-ib", "r2n09-ib", "r2n10-ib"]),
        ("a[1,3]b,c-d-[5-6]", ["a1b", "a3b", "c-d-5", "c-d-6"]),
    ],
)
def test_a_list_of_nodes_is_understood_without_scontrol(nodelist, names, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_hosts(nodelist) == expand_hosts(nodelist) == names


def test_scontrol_is_asked_where_it_is_there(monkeypatch, tmp_path):
    script = tmp_path / "scontrol"
    script.write_text('#!/bin/sh\necho "$@" | tr " " "\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert list_hosts("x[1-2]") == ["show", "hostnames", "x[1-2]"]
    script.write_text("#!/bin/sh\nexit 1\n")
    assert list_hosts("x[1-2]") == ["x1", "x2"]


def test_tasks_of_each_node():
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("1") == [1]


def test_only_numbers_make_a_step():
    assert in_step(SRUN)
    assert not in_step({})
    assert not in_step(SRUN | {"SLURM_STEP_ID": "extern"})
