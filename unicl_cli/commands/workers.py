"""Worker processes of commands that measure."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from unicl_cli.errors import UniclError


def run_on_devices(devices: str, work: Callable[[Any], None]) -> None:
    """Run ``work(accelerator)`` here, or start the whole command again in as many workers as ``devices`` asks for."""
    from unicl_cli.launch import process

    code = process.run_in_workers(process.decide_launch(devices), sys.argv[1:])
    if code is not None:
        raise typer.Exit(code)

    def worker() -> None:
        from unicl_cli.launch.accelerator import start_accelerator

        accelerator = start_accelerator(devices=devices)
        work(accelerator)
        accelerator.end_training()

    process.run_and_report(worker)


def limit_to_one_process(devices: str) -> str:
    """Return ``devices`` for a command that reads standard input, which several processes cannot share."""
    from unicl_cli.launch.process import decide_launch

    if decide_launch(devices).how != "start":
        return devices
    if devices != "auto":
        raise UniclError(f"--devices {devices}: only one process can read standard input", "leave --devices out")
    return "1"
