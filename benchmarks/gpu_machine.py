"""The facts of the machine for `gpu.py`, as JSON on standard output: devices, driver, versions."""

import contextlib
import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from unicl_cli.jobs.bench.bench import PACKAGES, machine_facts

MORE = ("triton", "accelerate", "transformers", "datasets", "numpy", "pyarrow", "simplejpeg", "memeff")


def read_driver() -> str | None:
    """Return the version of NVIDIA's driver; None without one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        return found[0] if found else None
    return None


def list_cards() -> list[dict[str, Any]]:
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [
        {
            "name": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory_gib": round(card.total_memory / 2**30, 1),
            "multiprocessors": card.multi_processor_count,
        }
        for card in found
    ]


def list_versions() -> dict[str, str | None]:
    """Return the version of each package; None for one that is not installed."""
    found: dict[str, str | None] = dict.fromkeys((*PACKAGES, *MORE))
    for name in found:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def try_interpreter() -> str | None:
    """Run the loss kernels in Triton's interpreter; return the reason that it cannot, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    try:
        from unicl_cli.losses.contrast import both_ways

        both_ways(torch.eye(4), torch.eye(4), torch.arange(4), 1.0)
    except Exception as error:  # noqa: BLE001 - Triton and NumPy may not fit together; the caller says so
        return f"Triton's interpreter fails: {type(error).__name__}: {error}".splitlines()[0]
    return None


def main() -> None:
    cards = list_cards() if torch.cuda.is_available() else []
    device = torch.device("cuda" if cards else "cpu")
    cuda = {"cuda": torch.version.cuda, "driver": read_driver(), "cards": cards}
    if not cards:
        cuda["no_interpreter"] = try_interpreter()
    sys.stdout.write(json.dumps({**machine_facts(device), **cuda, "versions": list_versions()}) + "\n")


if __name__ == "__main__":
    main()
