"""The workers of this machine, run by torch elastic: start, signals, restarts, and a report of how they ended."""

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

from unicl_cli.errors import READER_GONE, Stopped, UniclError, write_line, write_note
from unicl_cli.formats import count_of
from unicl_cli.launch.nodes import MEET_SECONDS, open_rendezvous
from unicl_cli.launch.plan import ECHOES, Launch
from unicl_cli.launch.stopping import AT_ONCE, HANGUP, StopFlag, list_terminals, silence_lost_terminals, stop_signals
from unicl_cli.storage.files import make_folder

Untyped: Any = LocalElasticAgent  # its methods are decorated with what has no types
MISTAKEN = 2
EXPLAINED = (MISTAKEN, 3)  # exit codes of errors that the user can fix, which rank 0 has already printed
STOPPED = 75
LEAVE_SECONDS = 300
LOST_SECONDS = 30  # for workers that may be waiting for one that has ended
MISTAKE = "UniclError: "
GOES_ON = "run the same command again to continue from the last checkpoint"
AGAIN = "run the same command again, with --devices 1 or cpu:1 to see the error of one process"
EVERYWHERE = (
    "read the output of the other nodes; run the same command on every node to continue from the last checkpoint"
)


def start_workers(
    launch: Launch, argv: Sequence[str], logs: Path | None, stop: StopFlag | None, restarts: int, task: str
) -> int:
    """Run ``unicl *argv`` in the workers of ``launch``; return the exit code of the one that failed first, or 0.

    After a failure that is not the user's mistake, all workers are started again, up to ``restarts`` times.
    """
    if not os.environ.get("UNICL_DEBUG"):
        for name in logging.root.manager.loggerDict:  # the agent's box and its warnings about signals
            if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    listener = SignalListener()
    try:
        listener.listen()
        if stop is not None:
            stop.raise_if_set()  # a signal that came earlier
        rendezvous = open_rendezvous(launch.nodes, task)
        speaks = int(launch.nodes.rank == 0)  # only rank 0 writes to the terminal
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
            return Agent(spec, files, launch, listener, AGAIN if stop is None else GOES_ON).run_to_end()
    except SignalException as ended:  # no worker was running
        if stop is None:
            return 128 + int(ended.sigval)
        raise Stopped("stopped while no worker was running", "run the same command again to continue") from ended


@contextlib.contextmanager
def log_folder(logs: Path | None) -> Generator[str]:
    """Yield the folder for the output of workers without a terminal: ``logs``, or a temporary one."""
    if logs is None:
        with tempfile.TemporaryDirectory(prefix="unicl_") as folder:
            yield folder
        return
    with make_folder(logs):
        yield str(logs)


class SignalListener:
    """The signals of a launcher: the first ends its work; a second one in ``AT_ONCE`` kills the workers."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.terminals = list_terminals()
        self.signals = list(stop_signals("SIGQUIT"))
        # torch handles these once it starts workers; by default it would also handle what nohup silenced
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in self.signals)
        self.workers: list[int] = []

    def listen(self) -> None:
        for number in self.signals:
            signal.signal(number, self.hear)

    def hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == HANGUP:
            silence_lost_terminals(self.terminals)
        if self.first is None:
            self.first = number
            raise SignalException(f"signal {number}", signal.Signals(number))
        if number in AT_ONCE:
            for pid in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


class Agent(Untyped):
    """Torch elastic's agent; it restarts the workers only after failures that a restart can fix."""

    def __init__(
        self, spec: WorkerSpec, files: DefaultLogsSpecs, launch: Launch, listener: SignalListener, hint: str
    ) -> None:
        super().__init__(spec, files, shutdown_timeout=LEAVE_SECONDS)
        self.hint = hint
        self.files, self.launch, self.listener, self.starts, self.is_meeting = files, launch, listener, 0, True

    def run_to_end(self) -> int:
        """Run to the end and return the exit code. Raises UniclError if a rank or a node has failed."""
        lost: Exception | None = None
        try:
            result = self.run()
        except SignalException:
            if self.is_meeting:
                raise
            result = self.last_result()
        except (RendezvousError, DistError) as error:
            lost, result = error, self.last_result()
        if self.listener.first is None:
            self.get_worker_group().spec.rdzv_handler.shutdown()  # the other nodes need not wait
        failures: Mapping[int, Any] = result.failures if result else {}
        known = {STOPPED, READER_GONE, *EXPLAINED} & {failure.exitcode for failure in failures.values()}
        if not known and (lost is not None or result is None) and not (result and result.return_values):
            count, _, place = self.launch.nodes
            what = "did not meet" if not self.starts else "lost each other"
            raise UniclError(
                f"the {count} nodes {what} at {place}: {describe_loss(lost)}", EVERYWHERE, exit_code=1
            ) from lost
        return self.exit_code(failures)

    def exit_code(self, failures: Mapping[int, Any]) -> int:
        """Return the exit code for the failures of the workers."""
        codes = {failure.exitcode for failure in failures.values()}
        if not codes:
            return 0
        for quiet in (STOPPED, READER_GONE):
            if quiet in codes:
                return quiet
        if self.listener.first is not None and not codes & set(EXPLAINED):
            return 128 + self.listener.first
        if MISTAKEN in codes and self.starts == 1:  # rank 0 has printed the error: the logs add nothing
            shutil.rmtree(cast("str", self.files._run_log_dir))  # pyright: ignore[reportPrivateUsage]
        return exit_code_of(failures, self.launch, self.hint)

    def last_result(self) -> RunResult | None:
        """Return how the workers of this machine ended; None if none were started."""
        return super()._monitor_workers(self.get_worker_group()) if self.starts else None

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.is_meeting = True
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.starts, self.is_meeting = self.starts + 1, False
        pids = super()._start_workers(worker_group)
        self.listener.workers = list(pids.values())
        self.listener.listen()  # torch has put its own handlers into place
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        several = self.launch.nodes.total > 1
        if several and result.state == WorkerState.HEALTHY and worker_group.spec.rdzv_handler.is_closed():
            self._shutdown_timeout = LOST_SECONDS
            raise RendezvousClosedError
        if result.failures and self._remaining_restarts:
            if {failure.exitcode for failure in result.failures.values()} & {STOPPED, READER_GONE, *EXPLAINED}:
                self._remaining_restarts = 0
            else:
                left = self._remaining_restarts - 1
                said = f"{describe_failure(result.failures, self.launch)}; all start again from the last checkpoint"
                write_note(f"warning: {said} ({count_of(left, 'more restart')})")
        return result


def describe_loss(lost: Exception | None) -> str:
    """Return why the nodes lost each other, as text."""
    if isinstance(lost, RendezvousTimeoutError):
        return f"not all of them came within {MEET_SECONDS} s"
    return "another node has ended" if isinstance(lost, RendezvousClosedError | None) else "node 0 is gone"


# -- the first failure -------------------------------------------------------------------------------------------


def is_echo(failure: Any) -> bool:
    """Return whether this rank failed only because another one did."""
    return failure.exitcode == -signal.SIGTERM or any(word in str(failure.message) for word in ECHOES)


def find_culprit(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """Return (rank, failure) of the rank that failed first; peers that lost the connection to it do not count."""

    def order(item: tuple[int, Any]) -> tuple[bool, bool, int, int]:
        rank, failure = item
        return failure.exitcode not in EXPLAINED, is_echo(failure), failure.timestamp, rank

    return min(failures.items(), key=order)


def describe_failure(failures: Mapping[int, Any], launch: Launch) -> str:
    """Return which rank failed first and how; print its traceback if there is one."""
    rank, failure = find_culprit(failures)
    who = f"rank {rank} of {launch.world}"
    if launch.nodes.total > 1 and is_echo(failure):
        return f"{who} lost the connection to another node"
    if isinstance(failure.message, dict):
        for line in failure.message.get("extraInfo", {}).get("py_callstack", "").splitlines():
            write_line(line)
    code = failure.exitcode
    return f"{who} failed ({f'exit code {code}' if code >= 0 else f'killed by {signal.Signals(-code).name}'})"


def exit_code_of(failures: Mapping[int, Any], launch: Launch, hint: str) -> int:
    """Return the exit code of an error that rank 0 has printed. Raises UniclError for every other failure."""
    _, failure = find_culprit(failures)
    if failure.exitcode not in EXPLAINED:
        what = describe_failure(failures, launch)
        raise UniclError(what, EVERYWHERE if launch.nodes.total > 1 else hint, exit_code=1)
    if 0 in failures and (failures[0].exitcode in EXPLAINED or message_of(failures[0]).startswith(MISTAKE)):
        return int(failure.exitcode)  # rank 0 may have been killed just after it printed the error
    raise UniclError(message_of(failure).removeprefix(MISTAKE), exit_code=failure.exitcode)


def message_of(failure: Any) -> str:
    """Return the message of the exception that ended a rank."""
    return str(failure.message["message"] if isinstance(failure.message, dict) else failure.message)
