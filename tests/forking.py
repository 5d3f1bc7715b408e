"""Python commands as forks of a process that has imported everything: real processes, without seconds of imports.

``Forked`` is a ``subprocess.Popen``: the process is a child of its caller, with streams, environment, folder, session
and signals of its own. This file as a script is the server, which forks it twice, so that nothing of a test is in it:
the first fork ends at once, and the kernel gives the second one to the caller, who asks to be the reaper of orphans.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import itertools
import json
import multiprocessing.util
import os
import pkgutil
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from functools import cache
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
MALLOC = {"MALLOC_ARENA_MAX": M_ARENA_MAX, "MALLOC_MMAP_THRESHOLD_": M_MMAP_THRESHOLD}
AT_START = re.compile(r"(HF_|OMP_NUM|MKL_|KMP_|MALLOC_|PYTHON(?!SAFEPATH|PATH)|LD_|LC_|LANG)")
"""Environment variables that are read once, as a process starts or imports a library."""
FLAGS = ("-u", "-P", "-B")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SPAWNED = "--multiprocessing-fork"
STARTS_PROCESSES = re.compile(
    r"cpu:[2-9]|--nodes|--max-restarts|torch\.distributed|accelerate|workers[= ][1-9]|\bprepare\b"
)
LIBRARIES = (
    *("accelerate", "pyarrow.parquet", "safetensors.torch", "tokenizers", "torch._dynamo", "torch.distributed.fsdp"),
    *("torch.distributed.run", "torch.nn.parallel", "torch.utils.data", "torch.utils.flop_counter"),
)
LEFT_OUT = re.compile(r"__main__|\.bench\.probe|open_clip|\.carry")
"""Modules whose libraries few tests use and each fork would pay for."""
MOST_BYTES, MOST_FILES, FILES_END = 1 << 20, 32, 512
"""Of a request; of the files open in a server."""


def begin(args, env=None, **options):
    """A process of this command line: forked where it can be, or from scratch."""
    kind = Forked if can_be_forked(args, os.environ if env is None else env) else subprocess.Popen
    return kind(args, env=env, **options)


def can_be_forked(words, env):
    """Is it a line of this Python, with what is read at its start as the server has it?"""
    before = list(itertools.takewhile(lambda word: word in FLAGS, words[1:]))
    first = words[1 + len(before)]
    if sys.platform != "linux" or words[0] != sys.executable or (first[0] == "-" and first not in ("-m", "-c")):
        return False
    here = server().env
    names = {name for name in {*env, *here} if AT_START.match(name)} - MALLOC.keys()
    return all(env.get(name) == here.get(name) for name in names)


def complete(args, *, timeout=300, check=False, **options):
    """As `subprocess.run`, with both outputs as text."""
    with begin(args, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                process.kill()
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class Forked(subprocess.Popen):
    """A process of this Python, forked from the server of the calling process."""

    def _execute_child(self, *given, **named):
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *given, **named).arguments
        streams = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = {place: place if file == -1 else file for place, file in enumerate(streams)}
        self.pid = server().fork(asked["args"], files, asked["env"], asked["cwd"], session=asked["start_new_session"])
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pipes))


def spawn(path, words, files):
    """Return a process id, as `multiprocessing` expects of what starts a process."""
    del path
    return server().fork(list(map(os.fsdecode, words)), {file: file for file in (0, 1, 2, *files)})


class Server:
    """The client's end of the server."""

    def __init__(self, channel, process=None):
        self.channel, self.process, self.env, self.lock = channel, process, dict(os.environ), threading.Lock()

    def close(self):
        self.channel.close()
        self.process.wait()

    def fork(self, words, files, env=None, cwd=None, *, session=False):
        """The process id of a new child of this process; ``files``: number there -> number here."""
        request = {
            "words": list(map(os.fspath, words)),
            "files": list(files),
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": session,
            "group": os.getpgrp(),
            "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "ignored": [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN],
        }
        with self.lock:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self.channel, [json.dumps(request).encode()], list(files.values()))
                return int(self.channel.recv(64))
            finally:
                ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@cache
def server():
    """The server of this process, which has imported everything, and does nothing but fork."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-P", __file__, str(theirs.fileno())]
    like_main = {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # set by unicl before it imports them
    process = subprocess.Popen(words, env=os.environ | like_main, pass_fds=[theirs.fileno()], process_group=0)
    theirs.close()
    assert ours.recv(64) == b"ready"
    found = Server(ours, process)
    atexit.register(found.close)
    return found


# -- in the server, and in what it forks -------------------------------------------------------------------------


def import_everything():
    import unicl_cli

    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(unicl_cli.__path__, "unicl_cli."):
        if not LEFT_OUT.search(module.name):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # forks share these pages


def serve(channel):
    """Fork at each request until the client is gone; returns, in each fork, its request."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(channel, MOST_BYTES, MOST_FILES)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        first = os.fork()
        if not first:
            request = json.loads(message)
            fork_again(request, write)
            place_files(files, request["files"])
            return request
        for file in (write, *files):
            os.close(file)
        os.waitpid(first, 0)
        channel.send(os.read(read, 64))
        os.close(read)


def fork_again(request, write):
    """Leave the server: the fork of this fork belongs to the client, who may signal it as soon as its number is out."""
    first = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == first:
        os.sched_yield()
    if request["session"]:
        os.setsid()
    else:
        os.setpgid(0, request["group"])
    take_signals(request["ignored"], request["blocked"])
    os.write(write, str(os.getpid()).encode())


def place_files(files, places):
    """Give open files their numbers, and close all others."""
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, FILES_END) for file in files]
    os.closerange(3, FILES_END)
    for file, place in zip(above, places, strict=True):
        os.dup2(file, place)
        os.close(file)


def become(request):
    """Make this process what a fresh one of that command line is; returns the words behind the interpreter's."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None
    for name, option in MALLOC.items():
        if name in os.environ:
            ctypes.CDLL(None).mallopt(option, int(os.environ[name]))
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in more if path and path not in sys.path]
    flags = set(itertools.takewhile(lambda word: word in FLAGS, request["words"][1:]))
    words = request["words"][1 + len(flags) :]
    ctypes.CDLL(None).prctl(PR_SET_NAME, name_of(words).encode(), 0, 0, 0)
    open_streams(unbuffered="-u" in flags or bool(os.environ.get("PYTHONUNBUFFERED")))
    if STARTS_PROCESSES.search(" ".join(words)):
        serve_forks_of_this_process()
    return words


def name_of(words):
    """As `ps` shows it: what the command line and the environment of a fork are, nobody else can see."""
    if words[:2] == ["-m", "unicl_cli"]:
        return f"rank{os.environ['RANK']}" if "RANK" in os.environ else "unicl"
    return "spawned" if SPAWNED in words else "python"


def take_signals(ignored, blocked):
    """As a new process has them: what its parent ignores or blocks, it does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def open_streams(*, unbuffered):
    for place, name in enumerate(("stdin", "stdout", "stderr")):
        raw = open(place, "wb" if place else "rb", 0 if unbuffered and place else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(
            raw,
            encoding=getattr(sys, name).encoding,
            errors=getattr(sys, name).errors,
            line_buffering=not unbuffered and (name == "stderr" or os.isatty(place)),
            write_through=unbuffered and place > 0,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def serve_forks_of_this_process():
    """A server below this process, before it does anything: what torch or multiprocessing start is forked from it."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"forks", 0, 0, 0)
        os.setpgid(0, 0)  # a signal to the group is for the command
        run(become(serve(theirs)))
    theirs.close()
    found = Server(ours)
    globals()["server"] = lambda: found
    subprocess_handler.Popen = begin
    multiprocessing.util.spawnv_passfds = spawn


def run(words):
    """Run a module, a text or a file to its end, as the interpreter does, and end with its status."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        end(0)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
        end(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - shown, as the interpreter would
        traceback.print_exc()
        end(1)


def end(status):
    """End as the interpreter does, but without freeing every object that was imported: half a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    sys.modules["forking"] = sys.modules["__main__"]
    own = socket.socket(fileno=int(sys.argv[1]))
    import_everything()
    own.send(b"ready")
    run(become(serve(own)))
