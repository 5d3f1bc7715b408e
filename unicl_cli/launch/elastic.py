"""Starts the workers of this machine through torch elastic, hears signals for them, and says how they ended."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, RendezvousTimeoutError

from unicl_cli.core.files import make_folder
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.launch.nodes import MEET_SECONDS, open_rendezvous
from unicl_cli.launch.plan import ECHOES, Launch
from unicl_cli.launch.stopping import AT_ONCE, HANGUP, StopFlag, list_terminals, silence_lost_terminals, stop_signals

Untyped: Any = LocalElasticAgent  # its methods are decorated with what has no types
MISTAKEN = 2
EXPLAINED = (MISTAKEN, 3)  # a worker with these failed of what a user can fix; rank 0 says it itself
STOPPED = 75
LEAVE_SECONDS = 300
LOST_SECONDS = 30  # for workers that may wait for one that has ended
MISTAKE = "UniclError: "
GOES_ON = "the same command goes on from the last checkpoint"
EVERYWHERE = "see what the other nodes say; the same command on every node goes on from the last checkpoint"


def start_workers(
    launch: Launch, argv: Sequence[str], logs: Path | None, stop: StopFlag | None, restarts: int, task: str
) -> int:
    """Runs ``unicl *argv`` in the workers of ``launch``; the exit code of the one that failed first, or 0.

    When one fails of anything but a mistake of the user's, all are started again, ``restarts`` times.
    """
    if not os.environ.get("UNICL_DEBUG"):
        for name in logging.root.manager.loggerDict:  # the agent's box and its warnings about signals
            if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    ears = SignalListener()
    try:
        ears.listen()
        if stop is not None:
            stop.raise_if_set()  # what came before
        rendezvous = open_rendezvous(launch.nodes, task)
        speaks = int(launch.nodes.rank == 0)  # rank 0 alone has the terminal
        spec = WorkerSpec(
            role="unicl",
            local_world_size=launch.processes,
            entrypoint=sys.executable,
            args=("-u", "-m", "unicl_cli", *argv),
            rdzv_handler=rendezvous,
            max_restarts=restarts,
            monitor_interval=0.1,
            local_addr=rendezvous.address,
        )
        with log_folder(logs) as folder:
            files = DefaultLogsSpecs(folder, dict.fromkeys(range(speaks, launch.processes), Std.ALL))
            return Agent(spec, files, launch, ears).run_to_end()
    except SignalException as ended:  # there was no worker
        if stop is None:
            return 128 + int(ended.sigval)
        raise Stopped("stopped while no process was at work", "the same command goes on") from ended


@contextlib.contextmanager
def log_folder(logs: Path | None) -> Generator[str]:
    """The folder of what workers without the terminal say: ``logs``, or one that is gone at the end."""
    if logs is None:
        with tempfile.TemporaryDirectory(prefix="unicl_") as folder:
            yield folder
        return
    with make_folder(logs):
        yield str(logs)


class SignalListener:
    """The signals of a launcher: the first ends its work, a second one that will not wait kills the workers."""

    def __init__(self) -> None:
        self.heard: int | None = None
        self.terminals = list_terminals()
        self.heeded = list(stop_signals("SIGQUIT"))
        # torch takes these when it starts workers; by default it would hear what nohup has silenced
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in self.heeded)
        self.workers: list[int] = []

    def listen(self) -> None:
        for number in self.heeded:
            signal.signal(number, self.hear)

    def hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == HANGUP:
            silence_lost_terminals(self.terminals)
        if self.heard is None:
            self.heard = number
            raise SignalException(f"signal {number}", signal.Signals(number))
        if number in AT_ONCE:
            for pid in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


class Agent(Untyped):
    """Torch elastic's agent, which starts again only what a new start can fix, and says so."""

    def __init__(self, spec: WorkerSpec, files: DefaultLogsSpecs, launch: Launch, ears: SignalListener) -> None:
        super().__init__(spec, files, shutdown_timeout=LEAVE_SECONDS)
        self.files, self.launch, self.ears, self.starts, self.meets = files, launch, ears, 0, True

    def run_to_end(self) -> int:
        """Runs to the end and returns the exit code. Raises UniclError where a rank or a node has failed."""
        lost: Exception | None = None
        try:
            result = self.run()
        except SignalException:
            if self.meets:
                raise
            result = self.last_result()
        except (RendezvousError, DistError) as error:
            lost, result = error, self.last_result()
        if self.ears.heard is None:
            self.get_worker_group().spec.rdzv_handler.shutdown()  # the other nodes need not wait
        failures: Mapping[int, Any] = result.failures if result else {}
        known = {STOPPED, *EXPLAINED} & {failure.exitcode for failure in failures.values()}
        if not known and (lost is not None or result is None) and not (result and result.return_values):
            count, _, place = self.launch.nodes
            what = "did not meet" if not self.starts else "lost each other"
            raise UniclError(
                f"the {count} nodes {what} at {place}: {describe_loss(lost)}", EVERYWHERE, exit_code=1
            ) from lost
        return self.exit_code(failures)

    def exit_code(self, failures: Mapping[int, Any]) -> int:
        """The exit code for workers that ended like this."""
        codes = {failure.exitcode for failure in failures.values()}
        if not codes:
            return 0
        if STOPPED in codes:
            return STOPPED
        if self.ears.heard is not None and not codes & set(EXPLAINED):
            return 128 + self.ears.heard
        if MISTAKEN in codes and self.starts == 1:  # all that there is to say is said now
            shutil.rmtree(cast("str", self.files._run_log_dir))  # pyright: ignore[reportPrivateUsage]
        return exit_code_of(failures, self.launch)

    def last_result(self) -> RunResult | None:
        """How the workers of this machine ended; None if there never were any."""
        return super()._monitor_workers(self.get_worker_group()) if self.starts else None

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.meets = True
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.starts, self.meets = self.starts + 1, False
        pids = super()._start_workers(worker_group)
        self.ears.workers = list(pids.values())
        self.ears.listen()  # torch has put its own handlers into place
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        several = self.launch.nodes.total > 1
        if several and result.state == WorkerState.HEALTHY and worker_group.spec.rdzv_handler.is_closed():
            self._shutdown_timeout = LOST_SECONDS
            raise RendezvousClosedError
        if result.failures and self._remaining_restarts:
            if {failure.exitcode for failure in result.failures.values()} & {STOPPED, *EXPLAINED}:
                self._remaining_restarts = 0
            else:
                left = self._remaining_restarts - 1
                said = f"{describe_failure(result.failures, self.launch)}; all start again from the last checkpoint"
                sys.stderr.write(f"warning: {said} ({left} more restart{'' if left == 1 else 's'})\n")
        return result


def describe_loss(lost: Exception | None) -> str:
    """Why nodes are apart, in the words of people."""
    if isinstance(lost, RendezvousTimeoutError):
        return f"not all came within {MEET_SECONDS} s"
    return "another node has ended" if isinstance(lost, RendezvousClosedError | None) else "node 0 is gone"


# -- whose fault it was -------------------------------------------------------------------------------------------


def is_echo(failure: Any) -> bool:
    """Did it fail because another rank had?"""
    return failure.exitcode == -signal.SIGTERM or any(word in str(failure.message) for word in ECHOES)


def find_culprit(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """(rank, failure) of the one to be blamed; peers that died of the lost connection are echoes."""

    def order(item: tuple[int, Any]) -> tuple[bool, bool, int, int]:
        rank, failure = item
        return failure.exitcode not in EXPLAINED, is_echo(failure), failure.timestamp, rank

    return min(failures.items(), key=order)


def describe_failure(failures: Mapping[int, Any], launch: Launch) -> str:
    """Says which rank failed first and how, below its traceback if it has left one."""
    rank, failure = find_culprit(failures)
    who = f"rank {rank} of {launch.world}"
    if launch.nodes.total > 1 and is_echo(failure):
        return f"{who} lost the connection to another node"
    if isinstance(failure.message, dict):
        sys.stderr.write(failure.message.get("extraInfo", {}).get("py_callstack", ""))
    code = failure.exitcode
    return f"{who} failed ({f'exit code {code}' if code >= 0 else f'killed by {signal.Signals(-code).name}'})"


def exit_code_of(failures: Mapping[int, Any], launch: Launch) -> int:
    """The exit code of a mistake that rank 0 has explained. Raises UniclError for all else."""
    _, failure = find_culprit(failures)
    if failure.exitcode not in EXPLAINED:
        raise UniclError(
            describe_failure(failures, launch), EVERYWHERE if launch.nodes.total > 1 else GOES_ON, exit_code=1
        )
    if 0 in failures and (failures[0].exitcode in EXPLAINED or message_of(failures[0]).startswith(MISTAKE)):
        return int(failure.exitcode)  # it was killed in its last moment, perhaps
    raise UniclError(message_of(failure).removeprefix(MISTAKE), exit_code=failure.exitcode)


def message_of(failure: Any) -> str:
    """What a rank has left of its exception."""
    return str(failure.message["message"] if isinstance(failure.message, dict) else failure.message)
