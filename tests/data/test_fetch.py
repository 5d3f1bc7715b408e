"""The fetcher against a server on the loopback that misbehaves in every way of `data.md` §10."""

import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from PIL import Image

from unicl_cli.data import fetch
from unicl_cli.data.fetch import RESOLVED, Fetcher, FetchError, check_public

LOCAL = Fetcher(allow_private=True, read=1.0, total=20.0, pause=0.01)


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """One behaviour a path; counts what is asked for."""

    asked: ClassVar[Counter[str]] = Counter()
    heads: ClassVar[list[dict[str, str]]] = []

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        count = self.asked[path] = self.asked[path] + 1
        self.heads.append(dict(self.headers))
        if path.startswith("/status/"):
            self.reply(int(path[8:]))
        elif path.startswith("/hop/"):
            left = int(path[5:])
            self.reply(302, Location=f"/hop/{left - 1}" if left else "/picture")
        elif path == "/to":
            self.reply(302, Location=self.path.split("?", 1)[1])
        else:
            getattr(self, path[1:].split("/")[0])(count)

    def picture(self, count: int) -> None:
        self.reply(body=picture())

    def html(self, count: int) -> None:
        self.reply(body=b"<html>no image</html>", Content_Type="image/png")

    def flaky(self, count: int) -> None:
        self.reply(503) if count == 1 else self.reply(body=b"at last")

    def later(self, count: int) -> None:
        self.reply(429, Retry_After="1") if count == 1 else self.reply(body=b"later")

    def short(self, count: int) -> None:
        self.reply(body=b"half", Content_Length="8")

    def lying(self, count: int) -> None:
        self.reply(Content_Length="99999999999")

    def silent(self, count: int) -> None:
        self.reply(Content_Length="10")
        time.sleep(3)

    def drip(self, count: int) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b".")
            self.wfile.flush()
            time.sleep(0.1)

    def headdrip(self, count: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(40):
            self.wfile.write(b".")
            self.wfile.flush()
            time.sleep(0.1)

    def chunked(self, count: int) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(400):
            self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def cutchunk(self, count: int) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"10\r\nhalf")

    def gzip(self, count: int) -> None:
        self.reply(body=b"x", Content_Encoding="gzip")

    def robots(self, count: int) -> None:
        self.reply(body=b"x", X_Robots_Tag="all, NoAI")

    def reset(self, count: int) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def nowhere(self, count: int) -> None:
        self.reply(302)

    def garbage(self, count: int) -> None:
        self.wfile.write(b"\0\1\2 what?\r\n\r\n")


class Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """A client that hangs up is what is tested."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture(autouse=True)
def fresh() -> None:
    Handler.asked.clear()
    Handler.heads.clear()
    RESOLVED.clear()


def refused(url: str, fetcher: Fetcher = LOCAL) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher(url)
    return caught.value


def test_a_body_comes_back_byte_for_byte_and_the_request_says_who_asks(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert LOCAL(f"{server}/picture/naïve café.png?a=1 2&b=ü#part") == picture()
    (head,) = Handler.heads
    assert head["User-Agent"].startswith("unicl/")
    assert head["Host"] == server.removeprefix("http://")


def test_nothing_on_this_machine_is_asked_without_leave(server):
    port = server.rsplit(":", 1)[1]
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0"):
        assert refused(f"http://{host}:{port}/picture", Fetcher()).reason == "private_address"
    assert not Handler.asked


def test_a_redirect_to_a_private_address_is_not_followed(server, monkeypatch):
    """The first address is made to look public; each place it leads to is judged anew."""
    seen: list[str] = []

    def public_once(address: str, host: str) -> None:
        seen.append(address)
        if len(seen) > 1:
            check_public(address, host)

    monkeypatch.setattr(fetch, "check_public", public_once)
    port = server.rsplit(":", 1)[1]
    targets = ("127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "2130706433")
    for target in targets:
        seen.clear()
        assert refused(f"{server}/to?http://{target}:{port}/picture", Fetcher()).reason == "private_address"
    assert Handler.asked["/picture"] == 0
    assert refused(f"{server}/to?file:///etc/passwd").reason == "bad_url"


def test_a_name_that_resolves_otherwise_the_second_time_is_not_asked_again(server, monkeypatch):
    """What was checked is what is connected to: no second look-up in between."""
    port = int(server.rsplit(":", 1)[1])
    calls: list[str] = []
    real = socket.getaddrinfo

    def resolver(host: str, *args, **options):
        if host[0].isdigit():
            return real(host, *args, **options)
        calls.append(host)
        ip = "127.0.0.1" if len(calls) == 1 else "127.0.0.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolver)
    connected: list[str] = []
    connect = socket.create_connection
    monkeypatch.setattr(
        fetch.socket, "create_connection", lambda place, timeout: connected.append(place[0]) or connect(place, timeout)
    )
    assert LOCAL(f"http://rebinding.example:{port}/picture") == picture()
    assert connected == ["127.0.0.1"]
    assert Handler.heads[0]["Host"] == f"rebinding.example:{port}"


def test_redirects_are_followed_up_to_five(server):
    assert LOCAL(f"{server}/hop/4") == picture()
    assert refused(f"{server}/hop/5").reason == "too_many_redirects"
    assert refused(f"{server}/to?/to").reason in ("too_many_redirects", "bad_url", "http_404", "reset")
    assert refused(f"{server}/nowhere").reason == "http_302"


@pytest.mark.parametrize("status", [403, 404, 410, 204])
def test_an_answer_without_a_body_is_named_and_not_asked_for_again(server, status):
    assert refused(f"{server}/status/{status}").reason == f"http_{status}"
    assert Handler.asked[f"/status/{status}"] == 1


def test_what_may_pass_is_tried_again_and_a_pause_that_is_asked_for_is_kept(server):
    assert LOCAL(f"{server}/flaky") == b"at last"
    began = time.monotonic()
    assert LOCAL(f"{server}/later") == b"later"
    assert time.monotonic() - began >= 1
    assert refused(f"{server}/status/500").reason == "http_500"
    assert Handler.asked["/status/500"] == 3


@pytest.mark.parametrize(
    ("path", "reason", "tries"),
    [
        *(
            ("short", "short_body", 3),
            ("cutchunk", "short_body", 3),
            ("reset", "reset", 3),
            ("garbage", "bad_answer", 1),
        ),
        *(("lying", "too_large", 1), ("chunked", "too_large", 1), ("gzip", "encoded", 1), ("robots", "robots", 1)),
    ],
)
def test_a_body_that_is_not_whole_or_not_wanted_is_refused(server, path, reason, tries):
    assert refused(f"{server}/{path}").reason == reason
    assert Handler.asked[f"/{path}"] == tries


def test_robots_are_for_corpora(server):
    assert LOCAL._replace(robots=False)(f"{server}/robots") == b"x"


@pytest.mark.parametrize("path", ["silent", "drip", "headdrip"])
def test_a_server_that_falls_silent_or_drips_is_left_in_time(server, path):
    began = time.monotonic()
    assert refused(f"{server}/{path}", LOCAL._replace(retries=0, total=2.0)).reason == "timeout"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://x/y", "data:image/png;base64,xx", "http://", "http:///x", "http://a:b@host/x"),
        *("http://host:99999/", "http://host:0/", "http://[::1/", "//host/x", "http://" + "a" * 70 + ".com/"),
    ],
)
def test_what_is_no_web_address_is_a_bad_url(url):
    assert refused(url, Fetcher()).reason == "bad_url"


def test_nobody_home_is_said_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert refused(f"http://127.0.0.1:{free.getsockname()[1]}/").reason == "refused"


def test_a_name_that_does_not_resolve_is_dns(monkeypatch):
    def none(*_: object, **__: object):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(fetch.socket, "getaddrinfo", none)
    assert refused("http://nowhere.example/", LOCAL._replace(retries=0)).reason == "dns"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https_is_for_the_name_that_was_asked_for(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server(("127.0.0.1", 0), Handler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"https://{{}}:{http.server_port}/picture"
        assert refused(url.format("localhost")).reason == "tls"
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(fetch, "tls_context", lambda: trusting)
        assert LOCAL(url.format("localhost")) == picture()
        assert refused(url.format("127.0.0.1")).reason == "tls"
        http.shutdown()
