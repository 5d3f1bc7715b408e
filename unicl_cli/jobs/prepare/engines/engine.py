"""The contract of an engine: units of work in, their markers out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from unicl_cli.contracts import DatasetSource
from unicl_cli.jobs.prepare.shards.shards import Tick
from unicl_cli.jobs.prepare.shards.units import Unit, Work

Marker = dict[str, Any]
"""The result of one unit: at least ``rows``, ``rejected`` (by reason) and ``payload`` (bytes)."""
Job = Callable[[Work, DatasetSource, Tick, Callable[[], bool]], Marker | None]
"""A module-level function, because workers pickle it. Returns None if it was stopped."""


class WorkList(NamedTuple):
    """Units that are still to be done, with the job to run on each.

    ``work_of`` makes the work of a unit, which can be pickled; ``source_of`` returns the source that is already open
    in this process, by its name in the corpus. ``is_remote``: units wait for servers, and run in processes that can be
    ended at once.
    """

    job: Job
    units: Sequence[Unit]
    work_of: Callable[[Unit], Work]
    source_of: Callable[[str], DatasetSource]
    is_remote: bool = False


class ProgressReport(Protocol):
    """The two calls that an engine makes, always from the process that started it."""

    def tick(self, rows: int, size: int, rejected: Mapping[str, int]) -> None:
        """Add rows, kept bytes and rejected rows by reason; negative numbers take back those of a lost unit."""
        ...

    def say(self, line: str) -> None:
        """Show a line about something that went wrong."""
        ...


class Engine(Protocol):
    """A function that runs the job on every unit and yields each marker once it is done, in any order.

    It ends early when ``stopped()`` becomes true; a unit that is not finished then leaves no file behind. It uses up
    to ``workers`` processes, and raises UniclError for a unit that kills its worker every time.
    """

    def __call__(
        self, todo: WorkList, *, workers: int, progress: ProgressReport, stopped: Callable[[], bool]
    ) -> Iterator[Marker]: ...
