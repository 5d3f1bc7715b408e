"""Fixtures that put back after each test what a command changes in this process: its environment and signals."""

import os
import signal
from collections.abc import Iterator

import pytest


def restored() -> Iterator[None]:
    """`--plugin` and `--data-dir` go on to worker processes in the environment: they end with the test."""
    before = _environment()
    yield
    after = _environment()
    if after == before:
        return
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    from unicl_cli import registry

    registry.forget()


def _environment() -> dict[str, str]:
    """Return all but pytest's own word on where it is."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


environment_of_module = pytest.fixture(restored, autouse=True, scope="module", name="environment_of_module")
"""For what the fixtures of a module change."""
environment_of_test = pytest.fixture(restored, autouse=True, name="environment_of_test")


@pytest.fixture(autouse=True)
def signals_of_test() -> Iterator[None]:
    """A training in this process takes the signals over: they come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
