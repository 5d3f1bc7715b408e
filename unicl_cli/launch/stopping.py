"""A request to stop a training: signals set a flag, and the loop reads it."""

import os
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

from unicl_cli.errors import Stopped

STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
HANGUP = getattr(signal, "SIGHUP", None)
AT_ONCE = (signal.SIGINT, getattr(signal, "SIGQUIT", None))
"""As a second signal, these come from an impatient user; others come from a scheduler that repeats itself."""


def stop_signals(*more: str) -> Iterator[signal.Signals]:
    """Yield the signals that ask for a stop, except those ignored from the start (``nohup``, background jobs)."""
    for name in (*STOPS, *more):
        number = getattr(signal, name, None)  # Windows has two of them
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            yield number


def list_terminals() -> list[int]:
    """Return which of standard output (1) and standard error (2) are terminals."""
    return [stream for stream in (1, 2) if os.isatty(stream)]


def silence_lost_terminals(streams: Sequence[int]) -> None:
    """After SIGHUP, redirect each lost terminal to the null device: writing to it would fail."""
    for stream in streams:
        if not os.isatty(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


class StopFlag:
    """A flag set by the signals in ``STOPS``: the loop writes a checkpoint and ends. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.terminals: list[int] = []

    def __call__(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        """Install the handlers; call it from the main thread, before anything slow.

        Without a handler, PID 1 of a container ignores SIGTERM.
        """
        self.terminals = list_terminals()
        for number in stop_signals():
            signal.signal(number, self._handle)

    def raise_if_set(self) -> None:
        """Raise Stopped if the flag is set; for use before the first step, where nothing is lost."""
        if self.signal is not None:
            raise Stopped("stopped before the first step", "run the same command again to continue")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == HANGUP:
            silence_lost_terminals(self.terminals)
        if self.signal is not None and number in AT_ONCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number if self.signal is None else self.signal
