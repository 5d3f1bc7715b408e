"""The work of a command on the devices that the user names: in this process, or in workers started for it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from unicl_cli.errors import UniclError
from unicl_cli.launch import process
from unicl_cli.launch.stopping import StopFlag


def run_on_devices(
    devices: str,
    work: Callable[[Any], None],
    *,
    precision: str = "auto",
    stop: StopFlag | None = None,
    logs: Path | None = None,
) -> None:
    """Run ``work(accelerator)`` here, or start the whole command again in as many workers as ``devices`` asks for.

    A command that trains gives a ``stop``, which is set by signals here and in the workers, and the folder ``logs`` for
    the output of workers.
    """
    if stop is not None and (not process.is_worker() or os.getpid() == 1):  # a worker would wait for its peers
        stop.install()
    code = process.run_in_workers(process.decide_launch(devices), sys.argv[1:], logs, stop)
    if code is not None:
        raise typer.Exit(code)

    def worker() -> None:
        from unicl_cli.launch.accelerator import start_accelerator

        accelerator = start_accelerator(precision, devices)
        if stop is not None:
            stop.install()
        work(accelerator)
        accelerator.end_training()

    process.run_and_report(worker)


def limit_to_one_process(devices: str) -> str:
    """Return ``devices`` for a command that reads standard input, which several processes cannot share."""
    if process.decide_launch(devices).how != "start":
        return devices
    if devices != "auto":
        raise UniclError(f"--devices {devices}: only one process can read standard input", "leave --devices out")
    return "1"
