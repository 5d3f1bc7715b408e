"""A web server on loopback whose images have the faults that their paths name, and counts what it is asked for."""

import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


def draw_png(number: int, side: int = 24) -> bytes:
    """Return an image that no other number has."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 99)).save(out, "PNG")
    return out.getvalue()


class ImageServer(ThreadingHTTPServer):
    """``/KIND/NUMBER.png``: kind ok, 404, 503, once (503, then well), html, empty, short, reset, private or loop."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.busy = self.most = 0
        self.is_well = False
        """503 is over."""
        self.delay = 0.0
        self.guard = threading.Lock()

    def url(self, kind: str, number: int) -> str:
        return f"http://127.0.0.1:{self.server_port}/{kind}/{number}.png"

    def handle_error(self, *args: Any) -> None:
        """A client that hangs up is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ImageServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.guard:
            server.asked[self.path] += 1
            server.busy += 1
            server.most = max(server.most, server.busy)
        time.sleep(server.delay)
        _, kind, name = self.path.split("/")
        getattr(self, f"do_{kind}", self.do_ok)(int(name.split(".")[0]))
        with server.guard:
            server.busy -= 1

    def reply(self, status: int = 200, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_ok(self, number: int) -> None:
        self.reply(body=draw_png(number))

    def do_404(self, number: int) -> None:
        self.reply(404)

    def do_503(self, number: int) -> None:
        self.do_ok(number) if self.server.is_well else self.reply(503)

    def do_once(self, number: int) -> None:
        self.reply(503) if self.server.asked[self.path] == 1 else self.do_ok(number)

    def do_html(self, number: int) -> None:
        self.reply(body=b"<html>no image</html>")

    def do_empty(self, number: int) -> None:
        self.reply()

    def do_short(self, number: int) -> None:
        self.reply(body=draw_png(number)[:40], length=900)
        self.close_connection = True

    def do_reset(self, number: int) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.close_connection = True

    def do_private(self, number: int) -> None:
        self.reply(302, Location=f"http://127.0.0.2:{self.server.server_port}/forbidden/{number}.png")

    def do_loop(self, number: int) -> None:
        self.reply(302, Location=self.path)

    def do_robots(self, number: int) -> None:
        self.reply(body=draw_png(number), **{"X-Robots-Tag": "noai"})


@contextmanager
def serve_images() -> Iterator[ImageServer]:
    with ImageServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
