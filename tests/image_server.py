"""A web server on loopback whose images have the faults that their paths name, and counts what it is asked for."""

import gzip
import io
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image
from scenes import CHANGES, change, draw_scene, encode


def draw_png(number: int, side: int = 24) -> bytes:
    """Return an image that no other number has."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 99)).save(out, "PNG")
    return out.getvalue()


def draw_jpeg(number: int) -> bytes:
    """Return a JPEG whose scan is most of its bytes."""
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    out = io.BytesIO()
    Image.blend(noise, Image.new("RGB", (64, 64), (number % 256, 80, 99)), 0.3).save(out, "JPEG")
    return out.getvalue()


class ImageServer(ThreadingHTTPServer):
    """``/KIND/NUMBER.png``: the kinds are the ``do_KIND`` of its handler; any other gives a sound image."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, place: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(place, FaultyHandler)
        self.asked: Counter[str] = Counter()
        self.busy = self.most = 0
        self.is_well = False
        """503 is over."""
        self.delay = 0.0
        self.changed: dict[int, int] = {}
        """Scenes that have become others."""
        self.guard = threading.Lock()

    def url(self, kind: str, number: int) -> str:
        return f"http://127.0.0.1:{self.server_port}/{kind}/{number}.png"

    def handle_error(self, *args: Any) -> None:
        """A client that hangs up is what is tested."""


class FaultyHandler(BaseHTTPRequestHandler):
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
        _, kind, name = self.path.partition("?")[0].split("/")
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

    def do_scene(self, number: int) -> None:
        """Send scene ``number % 100``: as it is below 100, else changed in the way of the hundreds."""
        number = self.server.changed.get(number, number)
        scene = draw_scene(number % 100)
        how = [None, *CHANGES][number // 100]
        self.reply(body=encode(scene) if how is None else change(scene, how))

    def do_scene503(self, number: int) -> None:
        self.do_scene(number) if self.server.is_well else self.reply(503)

    def do_404(self, number: int) -> None:
        self.reply(404)

    def do_403(self, number: int) -> None:
        self.reply(403)

    def do_410(self, number: int) -> None:
        self.reply(410)

    def do_429(self, number: int) -> None:
        self.reply(429, **{"Retry-After": "1"}) if self.server.asked[self.path] == 1 else self.do_ok(number)

    def do_500(self, number: int) -> None:
        self.reply(500) if self.server.asked[self.path] == 1 else self.do_ok(number)

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

    def do_silent(self, number: int) -> None:
        self.reply(length=99)
        time.sleep(4)

    def do_mute(self, number: int) -> None:
        time.sleep(4)
        self.close_connection = True

    def do_drip(self, number: int) -> None:
        self.reply(length=99)
        for byte in draw_png(number)[:20]:
            self.wfile.write(bytes([byte]))
            time.sleep(0.2)

    def do_endless(self, number: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def do_unmeasured(self, number: int) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def do_huge(self, number: int) -> None:
        self.reply(length=26_000_000)

    def do_garbage(self, number: int) -> None:
        self.wfile.write(b"\0\1\2 what?\r\n\r\n")
        self.close_connection = True

    def do_gzip(self, number: int) -> None:
        self.reply(body=gzip.compress(draw_png(number)), **{"Content-Encoding": "gzip"})

    def do_inflated(self, number: int) -> None:
        self.reply(body=gzip.compress(bytes(5_000_000)), **{"Content-Encoding": "gzip"})

    def do_gzipfile(self, number: int) -> None:
        self.reply(body=gzip.compress(draw_png(number)))

    def do_svg(self, number: int) -> None:
        self.reply(body=b"<svg xmlns='http://www.w3.org/2000/svg' width='40' height='40'/>")

    def do_cut(self, number: int) -> None:
        data = draw_jpeg(number)
        self.reply(body=data[: len(data) // 2])

    def do_flipped(self, number: int) -> None:
        data = bytearray(draw_jpeg(number))
        data[len(data) * 3 // 4] ^= 0x55
        self.reply(body=bytes(data))

    def do_bomb(self, number: int) -> None:
        head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        chunks = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        self.reply(body=b"\x89PNG\r\n\x1a\n" + chunks + draw_png(number)[33:])

    def do_hop(self, number: int) -> None:
        self.reply(302, Location=f"/hop/{number - 1}.png" if number else "/ok/0.png")

    def do_to(self, number: int) -> None:
        self.reply(302, Location=self.path.partition("?")[2])

    def do_headreset(self, number: int) -> None:
        self.reply(length=99, body=b"half")
        self.wfile.flush()
        self.do_reset(number)

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
