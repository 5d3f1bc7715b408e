"""Commands that run in worker processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from unicl_cli.errors import UniclError

if TYPE_CHECKING:
    pass


def in_workers(devices: str, work: Callable[[Any], None]) -> None:
    """``work(accelerator)`` in this process, or this whole command again in as many workers as ``devices`` asks for."""
    from unicl_cli.launch.process import decide_launch, run_and_report, run_in_workers

    code = run_in_workers(decide_launch(devices), sys.argv[1:])
    if code is not None:
        raise typer.Exit(code)

    def worker() -> None:
        from unicl_cli.launch.accelerator import start_accelerator

        accelerator = start_accelerator(devices=devices)
        work(accelerator)
        accelerator.end_training()

    run_and_report(worker)


def one_process(devices: str) -> str:
    """``devices`` for a command that reads standard input, which several processes cannot share."""
    from unicl_cli.launch.process import decide_launch

    if decide_launch(devices).how != "start":
        return devices
    if devices != "auto":
        raise UniclError(f"--devices {devices}: one process alone reads standard input", "leave --devices out")
    return "1"
