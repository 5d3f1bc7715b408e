"""The choice between the engines of `prepare`, and their start at the first unit of work."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import NamedTuple

from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.jobs.prepare.engines.engine import Engine
from unicl_cli.jobs.prepare.engines.local import run_local

LOCAL, RAY = "local", "ray"


class EngineChoice(NamedTuple):
    """An engine by its name, and the address of the cluster that it uses."""

    name: str = LOCAL
    cluster: str | None = None

    def check(self) -> None:
        """Raise UniclError for another name, or for what is not installed; nothing is started."""
        if self.name not in (LOCAL, RAY):
            raise UniclError(
                f"--engine {self.name}: not an engine", f"use local or ray{did_you_mean(self.name, (LOCAL, RAY))}"
            )
        if self.name == LOCAL:
            if self.cluster:
                raise UniclError("--cluster: is for Ray", "add --engine ray")
            return
        if find_spec("ray") is None:
            raise UniclError("--engine ray: Ray is not installed", 'install it: pip install "unicl[ray]"')

    @contextmanager
    def open(self, workers: int | None) -> Generator[tuple[Engine, int], None, None]:
        """Yield the engine and the number of units at a time: ``workers``, or one for each CPU.

        UniclError as `check`, or without its cluster.
        """
        self.check()
        if self.name == LOCAL:
            yield run_local, workers or cores()
            return
        from unicl_cli.jobs.prepare.engines.ray import open_ray

        with open_ray(self.cluster, workers) as opened:
            yield opened


ON_THIS_MACHINE = EngineChoice()


class LateEngine:
    """An engine that starts when there is work for the first time, and ends with this context: Ray takes seconds."""

    def __init__(self, choice: EngineChoice, workers: int | None) -> None:
        self.choice, self.workers, self._at_end = choice, workers, ExitStack()
        self._started: tuple[Engine, int] | None = None

    def __enter__(self) -> "LateEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._at_end.__exit__(kind, error, at)

    def start(self) -> tuple[Engine, int]:
        """Return the engine and the number of units at a time. UniclError as `EngineChoice.open`."""
        if self._started is None:
            self._started = self._at_end.enter_context(self.choice.open(self.workers))
        return self._started
