"""Forked commands: what the tests rely on is as in a process from scratch."""

import json
import os
import signal
import subprocess
import sys

import pytest
from forking import Forked, begin

FACTS = """
import json, os, signal, sys
streams = [(s.encoding, s.errors, s.line_buffering, s.isatty()) for s in (sys.stdin, sys.stdout, sys.stderr)]
print(json.dumps({
    "words": sys.argv, "folder": os.getcwd(), "own": os.environ.get("OWN"), "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(), "group": os.getpgrp() == os.getpid() or os.getpgrp(),
    "streams": streams, "name": __name__, "pytest": "pytest" in sys.modules,
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "files": sorted(map(int, os.listdir("/proc/self/fd"))),
}))
"""
ENDS = {"": 0, "import sys; sys.exit(75)": 75, "import sys; sys.exit('no')": 1, "1 / 0": 1, "import os; os._exit(9)": 9}
ENDS |= {"import os; os.abort()": -signal.SIGABRT, "raise KeyboardInterrupt": -signal.SIGINT}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks under Linux alone")]


def facts(kind, folder, **options):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = [sys.executable, "-c", FACTS, "one", "two words"]
    with kind(line, cwd=folder, env=os.environ | {"OWN": "ä"}, text=True, **pipes, **options) as process:
        out, err = process.communicate()
    assert err == ""
    return json.loads(out)


@pytest.mark.parametrize("session", [True, False])
def test_a_fork_is_what_a_process_from_scratch_is(tmp_path, session):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        forked, fresh = (facts(kind, tmp_path, start_new_session=session) for kind in (Forked, subprocess.Popen))
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert forked == fresh
    assert (forked["parent"], forked["session"], forked["own"]) == (os.getpid(), session, "ä")


@pytest.mark.parametrize(("code", "status"), ENDS.items())
def test_a_fork_ends_as_a_process_from_scratch_does(code, status):
    ends = []
    for kind in (Forked, subprocess.Popen):
        process = kind([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate()
        ends.append((process.returncode, out, err.splitlines()[-1:]))
    assert ends[0] == ends[1]
    assert ends[0][0] == status


def test_a_fork_is_killed_and_what_is_read_at_the_start_of_a_process_needs_a_fresh_one():
    sleeper = begin([sys.executable, "-c", "import time; time.sleep(1000)"])
    assert isinstance(sleeper, Forked)
    sleeper.kill()
    assert sleeper.wait(10) == -signal.SIGKILL
    other = begin([sys.executable, "-c", "1"], env=os.environ | {"HF_HOME": "/nowhere"})
    assert not isinstance(other, Forked)
    assert other.wait(60) == 0
