"""A safe fetcher of URLs: it returns bytes or a named reason, and refuses private addresses and endless answers.

It uses http.client with one connection per request and no proxies, so that this file checks each look-up, address
and redirect. Threads may share a Fetcher. The server's content type is ignored: decoding decides.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import random
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from unicl_cli import __version__

REDIRECTS = (301, 302, 303, 307, 308)
RETRIED = frozenset(("timeout", "reset", "short_body", "dns", "http_408", "http_425", "http_429")) | {
    f"http_{status}" for status in range(500, 600)
}
LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
"""Addresses that are translated inside a network; Python's ``is_global`` judges them differently by version."""
NO_TRAINING = frozenset(("noai", "noimageai", "noindex", "noimageindex"))
CARRIERS = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96"))
"""The IPv6 networks whose last 32 bits are an IPv4 address."""
LITERAL = "/%:=&~+!$,;'@()*[]?"
CHUNK = 1 << 16
LONGEST_PAUSE = 60.0
_look_ups = threading.BoundedSemaphore(16)  # resolvers fail when they are flooded


class FetchError(Exception):
    """A URL that cannot be fetched.

    ``reason``: bad_url, private_address, dns, timeout, reset, refused, tls, http_404 …, too_many_redirects, too_large,
    short_body, encoded or robots. ``pause``: the seconds that the server asks for before another try.
    """

    def __init__(self, reason: str, detail: str = "", pause: float | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.pause = reason, detail, pause

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Fetcher(NamedTuple):
    """A function of a URL: it returns the body of a 200 answer or raises FetchError. Fields are limits."""

    allow_private: bool = False
    """Skip the check for private addresses."""
    robots: bool = True
    """Obey ``X-Robots-Tag: noai …``, as a corpus for training should."""
    max_bytes: int = 10_000_000
    connect: float = 5.0
    read: float = 10.0
    """Seconds of the longest silence."""
    total: float = 30.0
    """Seconds of one try, from look-up to last byte: a server that drips is never silent."""
    redirects: int = 5
    retries: int = 2
    pause: float = 0.5
    """Seconds before the first retry; doubled each time, with jitter."""
    agent: str = f"unicl/{__version__}"

    def __call__(self, url: str) -> bytes:
        tries = 0
        while True:
            try:
                return self.fetch_once(url)
            except FetchError as error:
                if tries == self.retries or error.reason not in RETRIED:
                    raise
                wait = self.pause * 2**tries * random.uniform(1, 1.5)
                time.sleep(min(max(wait, error.pause or 0), LONGEST_PAUSE))
            tries += 1

    def fetch_once(self, url: str) -> bytes:
        """Try once; each redirect is followed by hand and checked like the first address."""
        end = time.monotonic() + self.total
        for _ in range(self.redirects + 1):
            parts = parse_url(url)
            with translate_errors(), self.open_answer(parts, end) as answer:
                if answer.status not in REDIRECTS:
                    return self.read_body(answer)
                target = answer.getheader("Location")
            if not target:
                raise FetchError(f"http_{answer.status}", "a redirect without a target")
            url = urljoin(url, target)
        raise FetchError("too_many_redirects", f"more than {self.redirects}")

    @contextmanager
    def open_answer(self, parts: SplitResult, end: float) -> Generator[http.client.HTTPResponse]:
        """Open the answer from an address that was checked: the name may resolve differently the next time."""
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        addresses = look_up(host, port)
        if not self.allow_private:
            for address in addresses:
                check_public(address, host)
        raw = self.open_socket(addresses, port, end)
        try:
            if parts.scheme == "https":
                raw.settimeout(max(min(self.connect, end - time.monotonic()), 0.001))
                raw = tls_context().wrap_socket(raw, server_hostname=host)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = DeadlineSocket(raw, self.read, end)  # pyright: ignore[reportAttributeAccessIssue] - it has all the methods http.client calls
            connection.putrequest("GET", target_of(parts), skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers(parts, host):
                connection.putheader(name, value)
            connection.endheaders()
            yield connection.getresponse()
        finally:
            raw.close()

    def headers(self, parts: SplitResult, host: str) -> list[tuple[str, str]]:
        name = f"[{host}]" if ":" in host else host
        return [
            ("Host", name if parts.port is None else f"{name}:{parts.port}"),
            ("User-Agent", self.agent),
            ("Accept", "image/*,*/*;q=0.5"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]

    def open_socket(self, addresses: list[str], port: int, end: float) -> socket.socket:
        """Connect to the first address that accepts."""
        problem: OSError | None = None
        for address in addresses:
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                return socket.create_connection((address, port), timeout=min(self.connect, left))
            except OSError as error:
                problem = error
        raise problem or TimeoutError("connecting")

    def read_body(self, answer: http.client.HTTPResponse) -> bytes:
        """Read the body and count its bytes: a chunked body has no length, and a length may be wrong."""
        if answer.status != 200:
            raise FetchError(f"http_{answer.status}", str(answer.reason), retry_after(answer))
        if self.robots and NO_TRAINING & set(robots_words(answer)):
            raise FetchError("robots", "the server asks not to use it (X-Robots-Tag)")
        if answer.getheader("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise FetchError("encoded", str(answer.getheader("Content-Encoding")))
        too_large = FetchError("too_large", f"more than {self.max_bytes:,} bytes")
        if (answer.length or 0) > self.max_bytes:
            raise too_large
        parts: list[bytes] = []
        size = 0
        while part := answer.read(CHUNK):
            size += len(part)
            if size > self.max_bytes:
                raise too_large
            parts.append(part)
        if answer.length:  # http.client raises nothing when the connection ends early
            raise FetchError("short_body", f"{answer.length} bytes are missing")
        return b"".join(parts)


class DeadlineSocket:
    """A socket for http.client with a deadline for the whole answer: headers can drip too."""

    def __init__(self, raw: socket.socket, read: float, end: float) -> None:
        self.raw, self.read, self.end = raw, read, end

    def sendall(self, data: Any) -> None:
        self.raw.settimeout(self.left())
        self.raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode  # always "rb"
        return io.BufferedReader(DeadlineReader(self))

    def close(self) -> None:
        """Do nothing: http.client calls this before the body is read; the fetcher closes the socket itself."""

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the whole answer took too long")
        return min(self.read, left)


class DeadlineReader(io.RawIOBase):
    """A byte stream from a DeadlineSocket."""

    def __init__(self, source: DeadlineSocket) -> None:
        super().__init__()
        self.source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self.source.raw.settimeout(self.source.left())
        return self.source.raw.recv_into(buffer)


@contextmanager
def translate_errors() -> Generator[None]:
    """Turn the errors of sockets, TLS and http.client into FetchError."""
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", str(error)) from error
    except ConnectionRefusedError as error:
        raise FetchError("refused", "nothing answers there") from error
    except ssl.SSLError as error:
        raise FetchError("tls", error.reason or str(error)) from error
    except http.client.InvalidURL as error:
        raise FetchError("bad_url", str(error)) from error
    except http.client.IncompleteRead as error:
        raise FetchError("short_body", str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise FetchError("reset", str(error) or type(error).__name__) from error


def target_of(parts: SplitResult) -> str:
    """Return path and query for the request; quoted characters stay quoted."""
    return quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe=LITERAL)


def parse_url(url: str) -> SplitResult:
    """Split an http or https URL. FetchError without a host, or with a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise FetchError("bad_url", str(error)) from error
    if parts.scheme not in ("http", "https"):
        raise FetchError("bad_url", f"{parts.scheme or 'no scheme'}: only http and https")
    if not parts.hostname or port == 0 or parts.username is not None:
        raise FetchError("bad_url", "no host" if not parts.hostname else "a name, a password or port 0")
    return parts


@lru_cache(maxsize=4096)
def look_up(host: str, port: int) -> list[str]:
    """Return all addresses of a host, in the resolver's order; failures are not cached."""
    try:
        with _look_ups:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise FetchError("bad_url", "no host name") from error
    except OSError as error:
        raise FetchError("dns", error.strerror or str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_public(address: str, host: str) -> None:
    """Raise FetchError for an address that is not public, also for an IPv4 address written as IPv6."""
    ip: Any = ipaddress.ip_address(address.split("%")[0])
    if ip.version == 6:
        inner = ip.ipv4_mapped or ip.sixtofour
        if any(ip in net for net in CARRIERS):
            inner = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    inside = ip.version == 6 and (ip.is_site_local or ip in LOCAL_NAT64)
    if not ip.is_global or ip.is_multicast or inside:
        raise FetchError("private_address", host if host == address else f"{host} is {address}")


@cache
def tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def robots_words(answer: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the words of all X-Robots-Tag headers."""
    for value in answer.headers.get_all("X-Robots-Tag", []):
        yield from (word.strip().lower() for word in value.split(","))


def retry_after(answer: http.client.HTTPResponse) -> float | None:
    """Return the seconds of Retry-After, which may be a number or a date; None without one."""
    value = answer.getheader("Retry-After")
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
