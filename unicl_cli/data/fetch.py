"""A safe fetcher of URLs: it returns bytes or a named reason, and refuses private addresses and endless answers.

Look-ups, addresses, sockets and redirects are this file's own; a `Channel` counts each byte that comes in, and each
wait ends at one deadline. Proxies are not used. Threads may share a Fetcher. The server's content type is ignored:
decoding decides.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from unicl_cli import __version__
from unicl_cli.data.addresses import is_public
from unicl_cli.data.http_channel import Answer, Channel, FetchError, time_left

REDIRECTS = (301, 302, 303, 307, 308)
RETRIED = frozenset(("timeout", "reset", "short_body", "dns", "http_408", "http_425", "http_429")) | {
    f"http_{status}" for status in range(500, 600)
}
NO_TRAINING = frozenset(("noai", "noimageai", "noindex", "noimageindex"))
LITERAL = "/%:=&~+!$,;'@()*[]?"
LONGEST_URL, LONGEST_HOST = 1 << 14, 253
MOST_HOSTS = 4096
RESOLVED: dict[tuple[str, int], list[str]] = {}
"""The addresses of hosts and ports that this process has looked up."""
_look_ups = threading.BoundedSemaphore(16)  # resolvers fail when they are flooded


class Fetcher(NamedTuple):
    """A function of a URL: it returns the body of a 200 answer or raises FetchError. Fields are limits."""

    allow_private: bool = False
    """Skip the check for private addresses."""
    robots: bool = True
    """Obey ``X-Robots-Tag: noai …``, as a corpus for training should."""
    max_bytes: int = 10_000_000
    """Bytes of one answer: its head, its body and what frames the body."""
    connect: float = 5.0
    read: float = 10.0
    """Seconds of the longest silence."""
    total: float = 30.0
    """Seconds of one URL: look-ups, connections, redirects, answers, tries and the pauses between them."""
    redirects: int = 5
    retries: int = 2
    pause: float = 0.5
    """Seconds before the first retry; doubled each time, with jitter."""
    agent: str = f"unicl/{__version__}"

    def __call__(self, url: str) -> bytes:
        end = time.monotonic() + self.total
        tries = 0
        while True:
            try:
                with blame_url():
                    return self.fetch_once(url, end)
            except FetchError as error:
                wait = max(self.pause * 2**tries * random.uniform(1, 1.5), error.pause or 0)
                if tries == self.retries or error.reason not in RETRIED or time.monotonic() + wait >= end:
                    raise
                time.sleep(wait)
            tries += 1

    def fetch_once(self, url: str, end: float) -> bytes:
        """Try once; each redirect is followed by hand and checked like the first address."""
        for _ in range(self.redirects + 1):
            place = parse_url(url)
            with self.open_socket(place, end) as raw:
                channel = Channel(raw, self.read, end, self.max_bytes)
                answer = channel.ask(place.target, self.headers(place))
                if answer.status not in REDIRECTS:
                    return self.read_body(channel, answer)
            target = next(answer.values_of("location"), None)
            if not target:
                raise FetchError(f"http_{answer.status}", "a redirect without a target")
            url = urljoin(url, target)
        raise FetchError("too_many_redirects", f"more than {self.redirects}")

    @contextmanager
    def open_socket(self, place: Place, end: float) -> Generator[socket.socket]:
        """Connect to an address that was checked: the name may resolve differently the next time."""
        addresses = look_up(place.host, place.port, end)
        if not self.allow_private:
            for address in addresses:
                check_public(address, place.host)
        raw = self.connect_first(addresses, place.port, end)
        try:
            if place.is_secure:
                raw.settimeout(time_left(end, self.connect))  # of the whole handshake
                raw = tls_context().wrap_socket(raw, server_hostname=place.host)
            yield raw
        finally:
            raw.close()

    def connect_first(self, addresses: list[str], port: int, end: float) -> socket.socket:
        """Connect to the first address that accepts."""
        problem = OSError("no address")
        for address in addresses:
            try:
                return socket.create_connection((address, port), timeout=time_left(end, self.connect))
            except OSError as error:
                problem = error
        raise problem

    def headers(self, place: Place) -> dict[str, str]:
        return {
            "Host": place.authority,
            "User-Agent": self.agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }

    def read_body(self, channel: Channel, answer: Answer) -> bytes:
        """Read the body of a 200 answer. Raises FetchError for another status and for what is not wanted."""
        if answer.status != 200:
            raise FetchError(f"http_{answer.status}", answer.reason, retry_after(answer))
        words = {word.strip().lower() for value in answer.values_of("x-robots-tag") for word in value.split(",")}
        if self.robots and NO_TRAINING & words:
            raise FetchError("robots", "the server asks not to use it (X-Robots-Tag)")
        odd = [value for value in answer.values_of("content-encoding") if value.lower() not in ("identity", "")]
        odd += [value for value in answer.values_of("transfer-encoding") if value.lower() != "chunked"]
        if odd:
            raise FetchError("encoded", odd[0])
        for length in answer.values_of("content-length"):  # the parser has checked that it is a number
            if int(length) > self.max_bytes:
                raise channel.too_large()
        return channel.read_body()


class Place(NamedTuple):
    """Parts of a URL: the host to look up and the target to ask for."""

    is_secure: bool
    host: str
    port: int
    authority: str
    """The header Host."""
    target: str
    """Path and query as a request writes them."""


@contextmanager
def blame_url() -> Generator[None]:
    """Turn every error that a server can cause into a FetchError: the one place where a URL is said to have failed.

    The last clause is for the parsers of numbers, dates and URLs, which read what a server wrote.
    """
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", str(error)) from error
    except ConnectionRefusedError as error:
        raise FetchError("refused", "nothing answers there") from error
    except ssl.SSLError as error:
        raise FetchError("tls", error.reason or str(error)) from error
    except OSError as error:
        raise FetchError("reset", str(error) or type(error).__name__) from error
    except (ValueError, LookupError, ArithmeticError) as error:
        raise FetchError("bad_answer", f"{type(error).__name__}: {error}") from error


def parse_url(url: str) -> Place:
    """Read an http or https URL. FetchError if it is not one, without a host, or with a password."""
    if len(url) > LONGEST_URL:
        raise FetchError("bad_url", f"more than {LONGEST_URL:,} characters")
    try:
        parts = urlsplit(url)
        given, host = parts.port, parse_host(parts.hostname or "")
        query = f"?{parts.query}" if parts.query else ""
        target = quote(f"{parts.path or '/'}{query}", safe=LITERAL, errors="surrogateescape")  # %41 stays %41
    except ValueError as error:
        raise FetchError("bad_url", str(error)) from error
    if parts.scheme not in ("http", "https"):
        raise FetchError("bad_url", f"{parts.scheme or 'no scheme'}: only http and https")
    if not host or given == 0 or parts.username is not None:
        raise FetchError("bad_url", "no host" if not host else "a name, a password or port 0")
    is_secure = parts.scheme == "https"
    name = f"[{host}]" if ":" in host else host
    authority = name if given is None else f"{name}:{given}"
    return Place(is_secure, host, given or (443 if is_secure else 80), authority, target)


def parse_host(host: str) -> str:
    """Return a host in ASCII. ValueError if it is neither a name nor an address."""
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    if len(host) > LONGEST_HOST:
        raise ValueError(f"a host of more than {LONGEST_HOST} characters")
    name = host.encode("idna").decode("ascii")
    if not re.fullmatch(r"[a-zA-Z0-9._-]*", name):
        raise ValueError("not a host name")
    return name


def look_up(host: str, port: int, end: float) -> list[str]:
    """Return all addresses of a host. A resolver knows no deadline, so it works in a thread that is left behind."""
    if known := RESOLVED.get((host, port)):
        return known
    if not _look_ups.acquire(timeout=time_left(end)):
        raise TimeoutError("the name servers are busy")
    found: Future[list[str]] = Future()

    def work() -> None:
        try:
            found.set_result(resolve(host, port))
        except Exception as error:  # noqa: BLE001 - raised again where the answer is awaited
            found.set_exception(error)
        finally:
            _look_ups.release()

    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError:  # as many threads as may be
        _look_ups.release()
        raise
    try:
        addresses = found.result(time_left(end))
    except TimeoutError:
        raise TimeoutError("the name servers do not answer") from None
    if len(RESOLVED) >= MOST_HOSTS:
        RESOLVED.clear()
    RESOLVED[host, port] = addresses
    return addresses


def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a host, in the resolver's order."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise FetchError("bad_url", "no host name") from error
    except OSError as error:
        raise FetchError("dns", error.strerror or str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_public(address: str, host: str) -> None:
    """Raise FetchError for an address that is not public."""
    if not is_public(address):
        raise FetchError("private_address", host if host == address else f"{host} is {address}")


@cache
def tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def retry_after(answer: Answer) -> float | None:
    """Return the seconds of Retry-After, which may be a number or a date; None without one that can be read."""
    value = next(answer.values_of("retry-after"), "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return parsedate_to_datetime(value[:64]).timestamp() - time.time()
    except (ValueError, TypeError, LookupError, ArithmeticError):
        return None
