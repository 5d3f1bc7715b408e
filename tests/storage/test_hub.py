"""The hub from a loopback address: announced downloads, the cache, and each way to fail in one line."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from unicl_cli.formats import byte_size
from unicl_cli.storage import hub

COMMIT = "a" * 40
NAME = "hf-hub:org/tiny"


class Answer(BaseHTTPRequestHandler):
    """What huggingface_hub asks for when it looks a model up and downloads a file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        del args

    def send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.server.seen.append((self.command, self.path))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut and len(body) > 1_000_000
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = bool(cut)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if self.server.status:
            self.send(self.server.status, b"", X_Error_Code="GatedRepo" if self.server.status == 403 else "")
        elif path.startswith("/api/models/"):
            self.send_info(path.removeprefix("/api/models/"))
        else:
            org, name, _, _, file = path.strip("/").split("/", 4) if path.count("/") > 4 else ("", "", "", "", "")
            found = self.server.root / org / name / file
            if not found.is_file():
                return self.send(404, X_Error_Code="EntryNotFound")
            data = found.read_bytes()
            self.send(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        return None

    def send_info(self, repo):
        folder = self.server.root / repo
        if not folder.is_dir():
            return self.send(404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(folder.iterdir())]
        facts = {"id": repo, "sha": COMMIT, "tags": [], "cardData": {"license": "mit"}, "siblings": files}
        self.send(200, json.dumps(facts).encode(), Content_Type="application/json")
        return None


@pytest.fixture
def server(open_clip_folder, tmp_path) -> Iterator[ThreadingHTTPServer]:
    """A hub with one model, `org/tiny`."""
    shutil.copytree(open_clip_folder("clip"), tmp_path / "hub/org/tiny")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.root, server.seen, server.status, server.cut = tmp_path / "hub", [], None, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fresh(server, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """A command line in a fresh process that knows this hub alone."""

    def run(*argv: str, **changes: str) -> subprocess.CompletedProcess:
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
        env = {**os.environ, **own, "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "5", **changes}
        return subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True, timeout=300)

    return run


FIND = f"""
import sys
from unicl_cli.storage import hub
from unicl_cli.errors import UniclError
try:
    source = hub.find_model(sys.argv[1] if len(sys.argv) > 1 else "{NAME}")
    print(source.weights)
except UniclError as error:
    print("UniclError", error.message, "|", error.hint)
"""


def test_a_download_is_announced_once_with_size_and_licence(fresh, server):
    first = fresh("-c", FIND)
    size = byte_size(sum(f.stat().st_size for f in (server.root / "org/tiny").iterdir()))
    assert first.stderr == f"downloading {NAME}: {size}, licence mit; kept in the cache\n"
    got = Path(first.stdout.strip())
    assert got.read_bytes() == (server.root / "org/tiny/open_clip_model.safetensors").read_bytes()
    for offline in ("0", "1"):
        server.seen.clear()
        again = fresh("-c", FIND, HF_HUB_OFFLINE=offline)
        assert (again.stdout, again.stderr, server.seen) == (first.stdout, "", [])


def test_each_failure_is_one_line_that_says_what_to_do(fresh, server):
    def said(name=NAME, **changes):
        done = fresh("-c", FIND, name, **changes)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert said(HF_HUB_OFFLINE="1") == (
        "UniclError org/tiny: not in the hub's cache, and HF_HUB_OFFLINE is set | "
        "unset HF_HUB_OFFLINE once to download it, or use local-dir:PATH or a run\n"
    )
    assert "org/none: not on the hub, or private | check the name" in said("hf-hub:org/none")
    assert "a b: not a name on the hub | write it as org/name" in said("hf-hub:a b")
    assert "org/tiny: cannot be fetched from the hub: " in said(HF_ENDPOINT="http://127.0.0.1:9")
    server.status = 401
    assert "org/tiny: not on the hub, or private" in said()
    server.status = 403
    assert "its terms have to be accepted | accept them at https://huggingface.co/org/tiny" in said()
    server.status = 500
    assert "the hub answered with status 500 | try again later" in said()
    server.status = None
    (server.root / "org/tiny/open_clip_model.safetensors").rename(server.root / "org/tiny/model.safetensors")
    assert f"model {NAME}: org/tiny on the hub has no open_clip_model.safetensors" in said()


@pytest.mark.slow
def test_a_broken_download_leaves_nothing_that_counts_and_goes_on_later(fresh, server, tmp_path):
    server.cut = True
    broken = fresh("-c", FIND)
    assert broken.stdout.startswith("UniclError org/tiny: cannot be fetched from the hub: ")
    assert "run the same command again" in broken.stdout
    assert not list((tmp_path / "home").rglob("snapshots/*/open_clip_model.safetensors"))
    server.cut = False
    whole = fresh("-c", FIND)
    assert whole.stderr.startswith(f"downloading {NAME}: ")
    assert (
        Path(whole.stdout.strip()).read_bytes() == (server.root / "org/tiny/open_clip_model.safetensors").read_bytes()
    )


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for the download", "set HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "the cache cannot be written", "set HF_HOME"),
        (TimeoutError(), "cannot be fetched from the hub: TimeoutError", "check the connection"),
    ],
)
def test_what_the_disk_or_the_line_does_is_said(error, message, hint):
    told = hub.explain(hub.model_repo("org/tiny"), error)
    assert message in told.message
    assert hint in told.hint


@pytest.mark.slow
def test_zeroshot_downloads_once_and_then_works_offline(fresh, tmp_path):
    Image.new("RGB", (80, 60), (200, 30, 30)).save(tmp_path / "red.png")
    words = [
        "-m",
        "unicl_cli",
        "zeroshot",
        str(tmp_path / "red.png"),
        "--classes",
        "red,blue",
        "--model",
        NAME,
        "--json",
    ]
    first = fresh(*words)
    assert (first.returncode, first.stderr.count("\n")) == (0, 1), first.stderr
    again = fresh(*words, HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stderr, again.stdout) == (0, "", first.stdout)
    nothing = fresh(
        "-m",
        "unicl_cli",
        "zeroshot",
        str(tmp_path / "red.png"),
        "--classes",
        "red",
        HF_HUB_OFFLINE="1",
        UNICL_MODEL="hf-hub:org/none",
    )
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: org/none: not in the hub's cache")
