"""The fetcher against servers that write whatever they like: a reason for each URL, in bounded time and bytes."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unicl_cli.data import fetch
from unicl_cli.data.fetch import Fetcher, FetchError
from unicl_cli.inference.batch_stream import BatchStream
from unicl_cli.inference.image_inputs import ImageInput, read_image

MOST = 100_000
LOCAL = Fetcher(allow_private=True, max_bytes=MOST, retries=0, read=5, total=10)
SLOW = LOCAL._replace(read=60, total=0.5, retries=50, pause=0)
LATE = 8
"""Seconds that no bounded fetch takes, and that fifty tries would."""
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
Talk = Callable[[socket.socket], None]


class RawServer:
    """A server on the loopback that writes ``answer`` to whoever asks, or lets ``answer`` talk; it counts requests."""

    def __init__(self) -> None:
        self.answer: bytes | Talk = b""
        self.asked = 0
        self.gate = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.gate.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.reply, args=(self.gate.accept()[0],), daemon=True).start()

    def reply(self, raw: socket.socket) -> None:
        with raw, contextlib.suppress(OSError):
            request = raw.recv(1 << 16)
            self.asked += 1
            if b"/good" in request.split(b"\r\n")[0]:
                raw.sendall(OK + b"Content-Length: 4\r\n\r\ngood")
            elif callable(self.answer):
                self.answer(raw)
            else:
                raw.sendall(self.answer)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(1 << 16):  # unread bytes would make the end a reset
                    pass


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    found = RawServer()
    yield found
    found.gate.close()


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send every name to the loopback: what a server writes as a target is not to be asked for out there."""

    def resolver(host: str, port: int, **_: object):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolver)
    monkeypatch.setattr(fetch.socket, "create_connection", lambda place, timeout: connect(place, timeout))
    fetch.RESOLVED.clear()


def connect(place: tuple[str, int], timeout: float) -> socket.socket:
    raw = socket.socket()
    raw.settimeout(timeout)
    try:
        raw.connect(place)
    except OSError:
        raw.close()
        raise
    return raw


def refused(url: str, fetcher: Fetcher = LOCAL) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher(url)
    return caught.value


FAULTS: dict[str, tuple[bytes, str | None]] = {
    "a target that is no URL": (b"HTTP/1.1 302 x\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n", "bad_answer"),
    "a target with an odd port": (b"HTTP/1.1 302 x\r\nLocation: http://a:99999/\r\n\r\n", "bad_url"),
    "a target with a digit for a port": (b"HTTP/1.1 302 x\r\nLocation: http://a:\xc2\xb2/\r\n\r\n", "bad_url"),
    "a target that NFKC changes": (b"HTTP/1.1 302 x\r\nLocation: http://a\xe2\x84\x80b/\r\n\r\n", "bad_answer"),
    "a target of empty labels": (b"HTTP/1.1 302 x\r\nLocation: http://a..b/\r\n\r\n", "bad_url"),
    "a target of bytes": (b"HTTP/1.1 302 x\r\nLocation: http://\xff\xfe/\r\n\r\n", "bad_url"),
    "a long target": (b"HTTP/1.1 302 x\r\nLocation: /" + b"a" * 20_000 + b"\r\n\r\n", "bad_url"),
    "a target elsewhere": (b"HTTP/1.1 302 x\r\nLocation: gopher://a/\r\n\r\n", "bad_url"),
    "a superscript pause": (b"HTTP/1.1 503 x\r\nRetry-After: \xc2\xb2\r\nContent-Length: 0\r\n\r\n", "http_503"),
    "a pause of ages": (b"HTTP/1.1 503 x\r\nRetry-After: " + b"9" * 5000 + b"\r\n\r\n", "http_503"),
    "a pause before all time": (b"HTTP/1.1 503 x\r\nRetry-After: Mon, 01 Jan 0000 00:00:00 GMT\r\n\r\n", "http_503"),
    "a pause of a year of five digits": (b"HTTP/1.1 429 x\r\nRetry-After: 1 Jan 99999 1:1:1 -9999\r\n\r\n", "http_429"),
    "a chunk of -1": (CHUNKED + b"-1\r\n" + bytes(200), "bad_answer"),
    "a chunk of -5": (CHUNKED + b"-5\r\nabc", "bad_answer"),
    "a chunk of +4": (CHUNKED + b"+4\r\nabcd\r\n0\r\n\r\n", "bad_answer"),
    "a chunk of 0x4": (CHUNKED + b"0x4\r\nabcd\r\n0\r\n\r\n", "bad_answer"),
    "a chunk of 1_0": (CHUNKED + b"1_0\r\nabcd\r\n0\r\n\r\n", "bad_answer"),
    "a chunk of all numbers": (CHUNKED + b"f" * 40 + b"\r\nabcd", "bad_answer"),
    "a large chunk that ends": (CHUNKED + b"ffffff\r\nabcd", "short_body"),
    "a trailer without end": (CHUNKED + b"0\r\n" + b"a: b\r\n" * 40_000, None),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\nabc", "bad_answer"),
    "a superscript length": (OK + b"Content-Length: \xc2\xb2\r\n\r\nabc", "bad_answer"),
    "a length of 5,000 digits": (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabc", None),
    "two lengths": (OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "bad_answer"),
    "a transfer encoding that is unknown": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "encoded"),
    "a status of no number": (b"HTTP/1.1 two OK\r\n\r\n", "bad_answer"),
    "a status of many digits": (b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n", "bad_answer"),
    "a status line with escapes": (b"HTTP/1.1 404 \x1b]0;owned\x07\rgood.png\tcat 99.9 %\r\n\r\n", None),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "bad_answer"),
    "nothing": (b"", "reset"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "reset"),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 40_000, None),
    "a line without end": (b"HTTP/1.1 200 OK\r\na: " + b"b" * 400_000, None),
    "answers before the answer": (b"HTTP/1.1 100 Continue\r\n\r\n" * 9000, "too_large"),
    "another protocol": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "bad_answer"),
    "an odd encoding": (OK + b"Content-Encoding: \xff\xfe\x80\r\n\r\nabc", "encoded"),
    "a body without end": (OK + b"\r\n" + bytes(400_000), "too_large"),
    "a body whose chunks are mostly frame": (CHUNKED + b"1\r\na\r\n" * 50_000, "too_large"),
}
"""Answer -> reason; None where the limit of a head and that of the answer are both near, or the words may differ."""


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_server_writes_is_the_reason_of_its_url(server: RawServer, fault: str):
    server.answer, reason = FAULTS[fault]
    found = refused(f"{server.url}/x")
    assert reason in (None, found.reason), found


ODD: dict[str, tuple[bytes, bytes]] = {
    "lines that end in LF": (b"HTTP/1.0 200 OK\nContent-Type: image/png\nContent-Length: 4\n\nbody", b"body"),
    "a length beside chunks": (CHUNKED[:-2] + b"Content-Length: 99\r\n\r\n4\r\nbody\r\n0\r\n\r\n", b"body"),
    "a trailer": (CHUNKED + b"4\r\nbody\r\n0\r\nX-Robots-Tag: noai\r\n\r\n", b"body"),
    "a second answer": (OK + b"Content-Length: 4\r\n\r\nbodyHTTP/1.1 404 x\r\nContent-Length: 2\r\n\r\nno", b"body"),
    "bytes behind the answer": (OK + b"Connection: close\r\nContent-Length: 4\r\n\r\nbody\0\0\0", b"body"),
    "an answer before the answer": (
        b"HTTP/1.1 103 x\r\nLink: y\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\nbody",
        b"body",
    ),
    "a body up to the end of the connection": (b"HTTP/1.0 200 OK\r\n\r\nbody", b"body"),
    "a control character in a value": (OK + b"Server: a\x1fb\r\nContent-Length: 4\r\n\r\nbody", b"body"),
    "a value that goes on in the next line": (OK + b"Server: a\r\n b\r\nContent-Length: 4\r\n\r\nbody", b"body"),
    "no words after the status": (b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\nbody", b"body"),
    "an empty body": (OK + b"Content-Length: 0\r\n\r\n", b""),
}
"""Answers that servers give and browsers take -> body."""


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_is_taken(server: RawServer, odd: str):
    server.answer, body = ODD[odd]
    assert LOCAL(f"{server.url}/x") == body


def test_a_fault_leaves_the_other_images_alone(server: RawServer):
    """The real threads of zeroshot: a good URL among all faults, and each in its place."""
    answers = [answer for answer, _ in FAULTS.values()]
    lock = threading.Lock()

    def talk(raw: socket.socket) -> None:
        with lock:
            answer = answers.pop() if answers else b""
        raw.sendall(answer)

    server.answer = talk
    images = [ImageInput(f"{server.url}/{'good' if n % 5 == 0 else n}") for n in range(len(FAULTS))]
    stream = BatchStream(images, lambda image: read_image(image, bytes, LOCAL), 8, patience=None, threads=16)
    found = [item for part in stream for _, item in part]
    assert [n for n, item in enumerate(found) if item == b"good"] == list(range(0, len(FAULTS), 5))
    assert all(isinstance(item, str) for n, item in enumerate(found) if n % 5)


@pytest.mark.parametrize(
    "start", [CHUNKED + b"-1\r\n", CHUNKED + b"f" * 20 + b"\r\n", OK + b"\r\n", OK, b"HTTP/1.1 100 x"]
)
def test_a_flood_is_read_up_to_the_limit(server: RawServer, start: bytes, monkeypatch: pytest.MonkeyPatch):
    """Counted where bytes come in: no length that a server states makes any layer read more."""
    taken: list[int] = []

    class Counted(fetch.Channel):
        def receive(self) -> bytes:
            data = b""
            try:
                data = super().receive()
            finally:
                taken.append(self.received)
            return data

    def flood(raw: socket.socket) -> None:
        raw.sendall(start)
        for _ in range(64):
            raw.sendall(bytes(1 << 20))

    monkeypatch.setattr(fetch, "Channel", Counted)
    server.answer = flood
    assert refused(f"{server.url}/x").reason in ("too_large", "bad_answer")
    assert max(taken) <= MOST + 1


def drip(data: bytes, then: bytes) -> Talk:
    def talk(raw: socket.socket) -> None:
        raw.sendall(data)
        for _ in range(int(LATE / 0.05)):
            raw.sendall(then)
            time.sleep(0.05)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        *(drip(b"", b""), drip(b"HTTP/1.1 200 OK\r\nX: ", b"."), drip(OK + b"\r\n", b".")),
        *(
            drip(CHUNKED, b"1\r\na\r\n"),
            drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            drip(CHUNKED + b"0\r\n", b"a: b\r\n"),
        ),
        drip(b"", b"HTTP/1.1 302 x\r\nLocation: /x\r\n\r\n"),
    ],
)
def test_one_deadline_holds_for_all_tries(server: RawServer, talk: Talk):
    server.answer = talk
    began = time.monotonic()
    assert refused(f"{server.url}/x", SLOW).reason in ("timeout", "too_many_redirects")
    assert time.monotonic() - began < LATE


def test_a_pause_that_a_server_asks_for_counts_against_the_deadline(server: RawServer):
    for pause in (b"3600", b"Fri, 31 Dec 2100 23:59:59 GMT"):
        server.asked, server.answer = 0, b"HTTP/1.1 503 x\r\nRetry-After: " + pause + b"\r\n\r\n"
        began = time.monotonic()
        assert refused(f"{server.url}/x", SLOW).reason == "http_503"
        assert time.monotonic() - began < LATE
        assert server.asked == 1


def test_addresses_that_do_not_answer_and_resolvers_that_hang_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch):
    many = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", 80)) for n in range(1, 100)]

    def wait(place: object, timeout: float) -> socket.socket:
        time.sleep(min(timeout, 0.2))
        raise TimeoutError("timed out")

    monkeypatch.setattr(fetch.socket, "create_connection", wait)
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *_, **__: many)
    began = time.monotonic()
    assert refused("http://many.example/", SLOW).reason == "timeout"
    assert time.monotonic() - began < LATE
    gate = threading.Event()
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *_, **__: gate.wait(60) and many)
    assert str(refused("http://hanging.example/", SLOW)) == "timeout: the name servers do not answer"
    gate.set()
    assert time.monotonic() - began < 2 * LATE


def test_a_handshake_that_drips_ends_at_the_deadline(server: RawServer):
    server.answer = drip(b"\x16\x03\x03\x40\x00", b"\0")
    began = time.monotonic()
    assert refused(server.url.replace("http", "https"), SLOW._replace(connect=60)).reason in ("timeout", "tls")
    assert time.monotonic() - began < LATE


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://a\0b/",
            "http://a b/",
            "http://a..b/",
            "http://" + "a." * 200 + "b/",
            "http://[fe80::zz]/",
        ),
        *(
            "http://a/" + "b" * 20_000,
            "http://\udcff/",
            "http://a/\ud800",
            "http://a:b/",
            "http://a:\u00b2/",
            "http://-\u2100/",
        ),
        *("http://%00/", "http://a%0d%0ab/", "http://a\\b/", "http://a<b>/", "http://" + "\u00fc" * 80 + ".de/"),
    ],
)
def test_a_url_of_the_users_list_that_cannot_be_asked_for_is_a_reason(url: str):
    assert refused(url).reason == "bad_url"


def test_a_name_and_a_path_in_another_alphabet_are_asked_for(server: RawServer):
    seen: list[bytes] = []

    def talk(raw: socket.socket) -> None:
        raw.sendall(OK + b"\r\nbody")

    port = server.url.rsplit(":", 1)[1]
    server.answer = talk
    real = fetch.Channel.ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch.Channel, "ask", lambda self, *words: seen.append(words) or real(self, *words))
        assert LOCAL(f"http://猫.example:{port}/b\udcffß?q=%41 猫") == b"body"
    ((target, headers),) = seen
    assert target == "/b%FF%C3%9F?q=%41%20%E7%8C%AB"
    assert dict(headers)["Host"] == f"xn--z7x.example:{port}"


NASTY = [
    b"\r\n",
    b"\n",
    b"\0",
    b"\xff",
    b"-1",
    b"\xb2",
    b":",
    b" ",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"%",
    b"[",
    b"=?",
]
BASES = [
    OK + b"Content-Length: 9\r\nContent-Type: image/png\r\nX-Robots-Tag: all\r\n\r\nnine byte",
    CHUNKED + b"4\r\nnine\r\n5;a=b\r\n byte\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://user.example/good?a=b#c\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Encoding: identity\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer of a real server with up to four changes: bytes in, out or doubled, or its end cut."""
    data = draw(st.sampled_from(BASES))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        new = draw(st.sampled_from([*NASTY, b"", data[at:to] * 3]) | st.binary(max_size=6))
        data = data[:at] + new + data[to if draw(st.booleans()) else at :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 5)) == 0 else data


def body_by_h11(answer: bytes) -> bytes | None:
    """The body as another parser reads it; None if it refuses the answer."""
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(answer)
    peer.receive_data(b"")
    body = b""
    with contextlib.suppress(h11.RemoteProtocolError):
        while not isinstance(event := peer.next_event(), h11.EndOfMessage):
            if event in (h11.NEED_DATA, h11.PAUSED):
                return None
            body += bytes(event.data) if isinstance(event, h11.Data) else b""
        return body
    return None


@given(answers())
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_answer_is_a_body_or_a_reason_and_the_next_url_is_answered(server: RawServer, data: bytes):
    server.answer = data
    with contextlib.suppress(FetchError):
        body = LOCAL(f"{server.url}/x")
        assert body in (body_by_h11(data), b"good") or body_by_h11(data) is None
    assert LOCAL(f"{server.url}/good") == b"good"
