"""One HTTP request and its answer on a socket: parsed by httptools, with a limit of bytes and a deadline."""

import math
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

CHUNK = 1 << 16
LONGEST_HEAD = 1 << 16
CLOSED = "the server closed the connection too early"
FRAMES = frozenset(("content-length", "transfer-encoding"))
"""Headers that tell where the body ends; without one the server closes the connection there."""
LENIENCIES = {
    "lenient_optional_cr_before_lf": True,  # lines of old servers
    "lenient_chunked_length": True,  # a length beside chunks, which count: the connection has no other answer
    "lenient_headers": True,  # control characters in values
}


class FetchError(Exception):
    """A URL that cannot be fetched.

    ``reason``: bad_url, private_address, dns, timeout, reset, refused, tls, http_404 …, too_many_redirects, too_large,
    short_body, bad_answer, encoded or robots. ``pause``: the seconds that the server asks for before another try.
    """

    def __init__(self, reason: str, detail: str = "", pause: float | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.pause = reason, detail, pause

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Answer(NamedTuple):
    """The head of an answer; bytes in it that are not UTF-8 are surrogates."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    """Names, in lower case, and values in the order of the answer."""

    def values_of(self, name: str) -> Iterator[str]:
        """Yield the values of all headers of a name, which is in lower case."""
        return (value for key, value in self.headers if key == name)


class Channel:
    """One request and its answer on a socket: each byte received counts against ``most``, each wait against ``end``.

    The limits stand below the parser of HTTP, so that nothing that a server writes can make it read more. The methods
    ``on_…`` are the parser's callbacks.
    """

    def __init__(self, raw: socket.socket, silence: float, end: float, most: int) -> None:
        self.raw, self.silence, self.end, self.most = raw, silence, end, most
        self.received = self.head_from = self.status = 0
        self.reason = b""
        self.headers: list[tuple[str, str]] = []
        self.parts: list[bytes] = []
        self.has_head = self.has_all = False
        self.parser = HttpResponseParser(self)
        self.parser.set_dangerous_leniencies(**LENIENCIES)

    def ask(self, target: str, headers: dict[str, str]) -> Answer:
        """Send a GET request and return the head of its answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode("ascii")
        while request:
            self.raw.settimeout(time_left(self.end, self.silence))
            request = request[self.raw.send(request) :]
        while not self.has_head:
            if not self.feed(self.receive()):
                raise FetchError("reset", CLOSED)
            if not self.has_head and self.received - self.head_from > LONGEST_HEAD:
                raise FetchError("bad_answer", f"a head of more than {LONGEST_HEAD:,} bytes")
        return Answer(self.status, _decode(self.reason), self.headers)

    def read_body(self) -> bytes:
        while not self.has_all:
            if not self.feed(self.receive()):
                if any(name in FRAMES for name, _ in self.headers):
                    raise FetchError("short_body", CLOSED)
                break  # the end of the connection is that of the body
        return b"".join(self.parts)

    def feed(self, data: bytes) -> bool:
        """Parse what came in; return whether the server may have more to say. FetchError if it is not HTTP."""
        try:
            self.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self.has_all:  # what comes after the answer does not matter
                raise FetchError("bad_answer", str(error)) from error
        return bool(data)

    def on_status(self, status: bytes) -> None:
        if not self.has_head:
            self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # later ones are a trailer
            self.headers.append((_decode(name).lower(), _decode(value)))

    def on_headers_complete(self) -> None:
        if self.has_head:
            return  # of a second answer
        self.status = self.parser.get_status_code()
        self.has_head = self.status >= 200
        if not self.has_head:  # 100 Continue and its like
            self.reason, self.head_from = b"", self.received
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        if not self.has_all:
            self.parts.append(data)

    def on_message_complete(self) -> None:
        self.has_all = self.has_head

    def too_large(self) -> FetchError:
        return FetchError("too_large", f"more than {self.most:,} bytes")

    def receive(self) -> bytes:
        """Wait for bytes; none if the server has closed its side."""
        self.raw.settimeout(time_left(self.end, self.silence))
        data = self.raw.recv(min(CHUNK, self.most - self.received + 1))
        self.received += len(data)
        if self.received > self.most:
            raise self.too_large()
        return data


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def time_left(end: float, most: float = math.inf) -> float:
    """Return the seconds to the deadline, at most ``most``. TimeoutError if there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the whole answer took too long")
    return min(most, left)
