"""How a training hears that it is to stop: a flag that signals set and that the loop asks."""

import os
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

from unicl_cli.errors import Stopped

STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
HANGUP = getattr(signal, "SIGHUP", None)
AT_ONCE = (signal.SIGINT, getattr(signal, "SIGQUIT", None))
"""As a second signal these come from somebody who will not wait; others are a scheduler that repeats itself."""


def stop_signals(*more: str) -> Iterator[signal.Signals]:
    """The signals that ask for a stop, less what was ignored from the start (``nohup``, jobs in the background)."""
    for name in (*STOPS, *more):
        number = getattr(signal, name, None)  # Windows has two of them
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            yield number


def list_terminals() -> list[int]:
    """Which of standard output and error are a terminal."""
    return [stream for stream in (1, 2) if os.isatty(stream)]


def silence_lost_terminals(streams: Sequence[int]) -> None:
    """After a hang-up: what was a terminal and is none any more leads nowhere; to write there would be an error."""
    for stream in streams:
        if not os.isatty(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


class StopFlag:
    """Set by a signal of STOPS: the loop writes a checkpoint and leaves. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.terminals: list[int] = []

    def __call__(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        """From the main thread, before anything slow: PID 1 of a container ignores SIGTERM otherwise."""
        self.terminals = list_terminals()
        for number in stop_signals():
            signal.signal(number, self._handle)

    def raise_if_set(self) -> None:
        """Before the first step, where nothing is lost."""
        if self.signal is not None:
            raise Stopped("stopped before a step was made", "the same command goes on")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == HANGUP:
            silence_lost_terminals(self.terminals)
        if self.signal is not None and number in AT_ONCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number if self.signal is None else self.signal
