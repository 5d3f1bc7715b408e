"""A pytest plugin that writes the outcome of each test to the file of OUTCOMES_FILE as soon as it is known."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unicl_cli.storage.files import write_atomic

FILE = Path(os.environ["OUTCOMES_FILE"])
DOCUMENT: dict[str, Any] = {"schema": "unicl/outcomes/1", "tests": [], "complete": False}


def save() -> None:
    write_atomic(FILE, json.dumps(DOCUMENT, ensure_ascii=False, indent=1) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the names of all tests that will run, before the first."""
    DOCUMENT["collected"] = [item.nodeid for item in session.items]
    save()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a test's outcome: after its call, or where its setup skipped or failed."""
    if report.when != "call" and report.outcome == "passed":
        return
    reason = ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    elif report.outcome == "failed":
        lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E  ")]
        reason = " ".join(line[1:].strip() for line in lines[:3])
    DOCUMENT["tests"].append(
        {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "reason": reason,
            "figures": dict(report.user_properties),
        }
    )
    save()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write that all tests had their turn, unless the run was interrupted."""
    del session
    DOCUMENT["complete"] = int(exitstatus) in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    save()
