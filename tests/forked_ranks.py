"""A command in processes that are forked from the test, which spares each of them seconds of imports.

How `unicl` itself starts ranks is tested in `tests/fault`.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.distributed import TCPStore
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from unicl_cli.cli import main
from unicl_cli.testing import unicl

SECONDS = 300

# At the first backward pass, torch starts threads for the devices that it believes in, and then trains in no fork.
# After a dry run, whose tensors are fake, it believes in a GPU that is not there: hence here, before any test.
torch.ones((), requires_grad=True).backward()


def can_fork() -> bool:
    """Torch's threads for a GPU do not survive a fork."""
    return sys.platform == "linux" and not torch.accelerator.is_available()


def on_ranks(count: int, *words: object, **environment: str) -> str:
    """Run `unicl WORDS` on ``count`` ranks, or in one process without a group, and return the stdout of the first.

    Raises RuntimeError if one fails or is killed.
    """
    command = [*map(str, words), "--devices", f"cpu:{count}"]
    if any("fsdp2" in word for word in command):
        import_module("torch.distributed.fsdp")  # seconds, which each rank would take again
    if can_fork():
        return forked(count, lambda: main(command), " ".join(("unicl", *command)), **environment)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return unicl(*command)


def forked(count: int, work: Callable[[], int], name: str, **environment: str) -> str:
    """Do the work on ``count`` ranks, each of which returns its exit code; return the stdout of the first."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    given = environment if count == 1 else environment | group
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ranks = start_processes(_be_rank, (work, given, place), nprocs=count, join=False, start_method="fork")
        assert ranks is not None
        try:
            _wait(ranks, time.monotonic() + SECONDS)
        except (ProcessExitedException, ProcessRaisedException, TimeoutError) as error:
            said = "".join(file.read_text() for file in sorted(place.glob("err-*")))
            raise RuntimeError(f"{name}: {error}\n{said}") from error
        return (place / "out-0").read_text()


def _wait(ranks, end: float) -> None:
    """Wait for all ranks; one that fails ends the others."""
    while not ranks.join(timeout=5):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"not done in {SECONDS} s")


def _be_rank(rank: int, work: Callable[[], int], given: dict[str, str], place: Path) -> None:
    """Be one rank, with the environment that a launcher gives it, and nothing of the trainings before the fork."""
    sys.stdout, sys.stderr = ((place / f"{name}-{rank}").open("w", buffering=1) for name in ("out", "err"))
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    os.environ.update(given | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    if "WORLD_SIZE" in given:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)  # the threads of the test are not there any more
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
    status = work()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without Python's teardown, in which gloo's threads may abort
