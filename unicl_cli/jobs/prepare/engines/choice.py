"""The choice between the engines of `prepare`."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.jobs.prepare.engines.engine import Engine
from unicl_cli.jobs.prepare.engines.local import run_local

LOCAL, RAY = "local", "ray"


class EngineChoice(NamedTuple):
    """An engine by its name, the address of the cluster that it uses, and the units at a time; None: all CPUs."""

    name: str = LOCAL
    cluster: str | None = None
    workers: int | None = None

    @contextmanager
    def open(self) -> Generator[tuple[Engine, int], None, None]:
        """Yield the engine and the number of units at a time. UniclError for another name, or without its cluster."""
        if self.name not in (LOCAL, RAY):
            raise UniclError(
                f"--engine {self.name}: not an engine", f"use local or ray{did_you_mean(self.name, (LOCAL, RAY))}"
            )
        if self.name == LOCAL:
            if self.cluster:
                raise UniclError("--cluster: is for Ray", "add --engine ray")
            yield run_local, self.workers or cores()
            return
        from unicl_cli.jobs.prepare.engines.ray import open_ray

        with open_ray(self.cluster, self.workers) as opened:
            yield opened
