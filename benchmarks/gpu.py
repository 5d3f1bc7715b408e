"""One command that proves and measures everything on a GPU; without one, the same at toy size on the CPU.

    python benchmarks/gpu.py --minutes 8 --out gpu-run
    python benchmarks/gpu.py --out gpu-run --only right --only loss

It installs nothing. Every phase has its share of the time and writes OUT/PHASE.json before and after each of its
commands; each command writes OUT/PHASE/NAME.json after every test or row. A run that is cut leaves what it has.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_phases import PHASES, ROOT, Command, Phase, build_phases
from gpu_targets import result_table
from rich.console import Console

from unicl_cli.storage.files import write_atomic

CLOSING = 15.0
"""Seconds at the end that no command may use: to stop the last one and print the table."""
GRACE = 8.0
"""Seconds that a command has to write what it has, once it was interrupted."""
START = 120.0
"""Seconds in which the machine's facts must be there: the first import of torch reads gigabytes."""
SKIPPED = "needs several cards"
"""The state of a phase that has no commands here."""
SAID = 12
"""Last lines of a command's output that its phase keeps."""


def save(path: Path, document: Any) -> None:
    write_atomic(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


def die_with_parent() -> None:
    """Let the kernel kill this command if `gpu.py` itself is killed (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def stop_group(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a command and all that it started; kill what is left after a while."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            if number == signal.SIGKILL:
                return
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def run_command(command: Command, limit: float, log: Path) -> dict[str, Any]:
    """Run a command for at most ``limit`` seconds; return how it ended. Its output goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **command.env},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            return {"state": "failed", "exit": None, "seconds": 0.0, "said": [str(error)]}
        state = "failed"
        try:
            if process.wait(limit) == 0:
                state = "done"
        except subprocess.TimeoutExpired:
            state = "cut"
        finally:
            stop_group(process)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    seconds = round(time.monotonic() - began, 1)
    return {"state": state, "exit": process.returncode, "seconds": seconds, "said": lines[-SAID:]}


def run_phase(phase: Phase, out: Path, until: float, about: dict[str, Any]) -> str:
    """Run a phase's commands until the time ``until`` (monotonic); return its state, which its JSON holds too."""
    document: dict[str, Any] = {
        "schema": "unicl/gpu-phase/1",
        "phase": phase.name,
        "title": phase.title,
        **about,
        "state": "running",
        "limit_s": round(until - time.monotonic(), 1),
        "commands": [{"name": c.name, "command": shlex.join(c.argv), "state": "not run"} for c in phase.commands],
    }
    file, began = out / f"{phase.name}.json", time.monotonic()
    save(file, document)
    for number, command in enumerate(phase.commands):
        entry = document["commands"][number]
        weights = [each.weight for each in phase.commands[number:]]
        limit = (until - time.monotonic()) * weights[0] / sum(weights)
        if limit <= 1:
            continue
        entry |= {"state": "running", "limit_s": round(limit, 1)}
        save(file, document)
        entry |= run_command(command, limit, out / phase.name / f"{command.name}.log")
        document["seconds"] = round(time.monotonic() - began, 1)
        save(file, document)
    states = {entry["state"] for entry in document["commands"]}
    document["state"] = next((s for s in ("failed", "cut", "not run", "done") if s in states), SKIPPED)
    save(file, document)
    return document["state"]


def read_machine(out: Path) -> dict[str, Any]:
    """Return the facts of this machine; torch is imported by another process, so that no memory of a card is held."""
    script = Command("machine", (sys.executable, str(Path(__file__).with_name("gpu_machine.py"))))
    log = out / "machine.log"
    ended = run_command(script, START, log)
    if ended["state"] != "done":
        raise SystemExit(f"error: the machine's facts could not be read: {' '.join(ended['said'][-1:])}")
    return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])


def run_phases(
    phases: Sequence[Phase], out: Path, until: float, about: dict[str, Any], say: Callable[[str], None]
) -> bool:
    """Run the phases; each has its share of the time that is left. Return False if the run was interrupted."""
    for number, phase in enumerate(phases):
        weights = [each.weight for each in phases[number:]]
        limit = (until - time.monotonic()) * weights[0] / sum(weights)
        say(f"{phase.name}: {phase.title} ({limit:.0f} s at most)")
        try:
            say(f"{phase.name}: {run_phase(phase, out, time.monotonic() + limit, about)}")
        except KeyboardInterrupt:
            say(f"{phase.name}: interrupted")
            return False
    return True


def interrupt(number: int, frame: object) -> None:
    """Answer SIGTERM as Ctrl-C: the running command is stopped and the table printed."""
    del number, frame
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default: 8)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON files")
    parser.add_argument("--only", action="append", choices=list(PHASES), help="run only this phase; may be repeated")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, interrupt)
    until = time.monotonic() + 60 * given.minutes - CLOSING
    out = given.out.absolute()
    console = Console(highlight=False)
    machine = read_machine(out)
    toy = not machine["cards"]
    words = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if argv is None else argv)])
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "toy": toy}
    save(out / "gpu.json", {"schema": "unicl/gpu/1", **about, "command": words, "machine": machine})
    if toy:
        console.print("no GPU: every phase runs at toy size on the CPU, and no target is judged")
        if machine["no_interpreter"] is not None:
            console.print(f"{machine['no_interpreter']}: the kernels are not run, and torch's tiles stand in for them")
    interpreter = toy and machine["no_interpreter"] is None
    phases = [
        each
        for each in build_phases(out, len(machine["cards"]), interpreter=interpreter)
        if not given.only or each.name in given.only
    ]
    whole = run_phases(phases, out, until, about, console.print)
    console.print(result_table(out))
    states = {json.loads((out / f"{phase.name}.json").read_text())["state"] for phase in phases} if whole else set()
    if not whole:
        return 130
    return 0 if states <= {"done", SKIPPED} else 1


if __name__ == "__main__":
    sys.exit(main())
