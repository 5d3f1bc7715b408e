"""The faults of input, one place for all: each runs through the real command here, or names the test that does.

``URLS``, ``IMAGES``, ``CAPTIONS`` and ``LISTS`` are tables of this file; ``ELSEWHERE`` names tests of other files.
"""

import gzip
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from image_server import FaultyHandler, ImageServer, serve_images
from PIL import Image
from toys import prepared, put, rows_of

from unicl_cli.cli import main
from unicl_cli.data import fetch
from unicl_cli.data.addresses import is_public
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.fetch import Fetcher
from unicl_cli.jobs.prepare.engines import local

KEPT = "kept"
URLS = {
    "404": ("http_404", 1),
    "403": ("http_403", 1),
    "410": ("http_410", 1),
    "503": ("http_503", 3),
    "once": (KEPT, 2),
    "500": (KEPT, 2),
    "429": (KEPT, 2),
    "silent": ("timeout", None),
    "mute": ("timeout", None),
    "drip": ("timeout", None),
    "reset": ("reset", 3),
    "headreset": ("reset", 3),
    "short": ("short_body", 3),
    "garbage": ("bad_answer", 1),
    "gzip": ("encoded", 1),
    "inflated": ("encoded", 1),
    "gzipfile": ("unsupported_format", 1),
    "endless": ("too_large", 1),
    "unmeasured": ("too_large", 1),
    "huge": ("too_large", 1),
    "loop": ("too_many_redirects", 6),
    "html": ("not_image", 1),
    "empty": ("empty", 1),
    "svg": ("unsupported_format", 1),
    "cut": ("truncated", 1),
    "bomb": ("bomb", 1),
    "robots": ("robots", 1),
}
"""A kind of the server: the outcome of its URL, and the requests that it gets (None: as many as fit the deadline)."""
HOPS = {4: KEPT, 5: "too_many_redirects", 6: "too_many_redirects"}
TARGETS = {
    "http://127.0.0.2:{port}/forbidden/1.png": "private_address",
    "http://10.0.0.1/1.png": "private_address",
    "http://169.254.169.254/latest/meta-data": "private_address",
    "http://100.64.0.1/1.png": "private_address",
    "http://[::1]:{port}/1.png": "private_address",
    "http://[::ffff:127.0.0.2]:{port}/forbidden/1.png": "private_address",
    "http://[64:ff9b::7f00:2]/1.png": "private_address",
    "http://2130706434:{port}/forbidden/1.png": "private_address",
    "http://0x7f.2:{port}/forbidden/1.png": "private_address",
    "http://0.0.0.0:{port}/forbidden/1.png": "private_address",
    "file:///etc/passwd": "bad_url",
    "ftp://127.0.0.2/1.png": "bad_url",
}
"""Places that a redirect leads to, and the outcome."""
ELSEWHERE = {
    "EXIF 6, CMYK, I;16, LA, P with alpha, 1 bit, animated, AVIF: each kind of pixels": (
        "data/test_picture_kinds.py::test_formats_give_their_pixels"
    ),
    "a large PNG takes no memory": (
        "data/test_pictures.py::test_a_picture_bomb_is_refused_from_its_header_without_the_memory_of_its_pixels"
    ),
    "a JPEG changed anywhere": "data/test_pictures.py::test_any_damage_gives_a_picture_or_a_reason",
    "a list in every form": "data/sources/test_sources.py::test_every_form_of_a_list_gives_the_same_rows",
    "a stray quote": "data/sources/test_sources.py::test_a_stray_quote_in_a_tsv_swallows_no_line",
    "a folder's empty classes, other files and hidden files": (
        "jobs/prepare/test_prepare.py::test_odd_pictures_are_kept_and_broken_ones_left_out_with_their_reason"
    ),
    "a loop of symbolic links": "data/sources/test_sources.py::test_links_are_followed_but_not_into_a_loop",
    "a key that two rows have": "jobs/prepare/plan/test_plan_memory.py::test_a_double_key_is_told_with_both_places",
    "a label that no class has": "data/sources/test_sources.py::test_a_label_that_no_class_has_is_named_by_its_line",
    "kill -9 as a file gets its name": (
        "fault/test_prepare_points.py::test_killed_as_a_file_gets_its_name_the_same_command_ends_in_the_same_bytes"
    ),
    "kill -9 in a download": "fault/test_download_kills.py::test_a_killed_download_loses_and_doubles_no_url",
    "SIGINT, SIGTERM": (
        "fault/test_prepare_kill.py::test_stopped_by_a_signal_it_exits_75_and_prints_the_command_that_goes_on"
    ),
    "disk full": (
        "fault/test_prepare_points.py::"
        "test_a_full_disk_is_one_line_without_litter_and_the_same_command_ends_in_the_same_bytes"
    ),
    "a worker dies": (
        "fault/test_prepare_kill.py::test_a_worker_that_dies_is_replaced_and_a_unit_that_kills_twice_is_named"
    ),
    "two prepares on one directory": (
        "jobs/prepare/test_prepare.py::test_a_second_prepare_is_told_that_the_directory_is_in_use"
    ),
    "another plan": "jobs/prepare/test_prepare.py::test_another_plan_in_the_same_directory_names_what_differs",
    "one bit of a shard": "jobs/prepare/test_repair.py::test_a_bit_flipped_anywhere_is_found",
    "repair makes the damaged shard only": (
        "jobs/prepare/test_repair.py::test_verify_names_each_damaged_shard_and_repair_makes_only_those_again"
    ),
    "local and Ray": "fault/test_ray.py::test_two_nodes_write_the_bytes_of_the_local_engine",
    "no row survives": (
        "jobs/prepare/test_prepare.py::test_no_row_left_is_an_error_without_a_manifest_and_the_mended_source_can_follow"
    ),
    "no row of a shard survives": (
        "jobs/prepare/test_repair.py::test_a_shard_without_survivors_is_not_written_and_readers_never_miss_it"
    ),
    "another process count or place to continue training": (
        "fault/test_resume_ranks.py::test_one_then_two_then_one_process_end_where_one_does"
    ),
}
"""A fault: the test that has it."""


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_a_fault_that_is_tested_elsewhere_is_there(place: str):
    file, _, name = place.partition("::")
    text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", text, re.MULTILINE)


# -- URLs ---


class Asked(NamedTuple):
    """Outcome of each URL's caption, the server, and what the forbidden one was asked for."""

    outcomes: dict[str, str]
    server: ImageServer
    forbidden: ImageServer
    connected: list[str]


def read_outcomes(corpus: Path, lines: list[str]) -> dict[str, str]:
    """Return the reason of each caption of a list, or KEPT."""
    table = open_corpus(corpus).table("train", "captions")
    outcomes = {table.read(row).texts[0]: KEPT for row in range(len(table))}
    words = {url: text for text, _, url in (line.rstrip("\n").partition("\t") for line in lines)}
    for file in (corpus / "rejects").iterdir():
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            assert words[row["url"]] not in outcomes, "a URL has one outcome"
            outcomes[words[row["url"]]] = row["reason"]
    return outcomes


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Iterator[Asked]:
    """One prepare of a list with a URL for each fault, each beside a sound one; only 127.0.0.1 counts as public."""
    folder = tmp_path_factory.mktemp("urls")
    resolve = socket.getaddrinfo
    answers = iter(("127.0.0.1", "127.0.0.2"))
    connected: list[str] = []

    def resolve_anew(host, port, *args, **options):
        if host == "rebinding.example":  # public first, private second
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]
        return resolve(host, port, *args, **options)

    def connect(self, addresses, port, end):
        connected.extend(addresses)
        return connect_first(self, addresses, port, end)

    connect_first = Fetcher.connect_first
    with serve_images() as server, pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as places:
        fetch.RESOLVED.clear()
        limits = {"max_bytes": 200_000, "read": 1.5, "total": 3.5, "pause": 0.01}
        patch.setattr(Fetcher.__new__, "__defaults__", tuple(Fetcher(**limits)))
        patch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
        patch.setattr(fetch.socket, "getaddrinfo", resolve_anew)
        patch.setattr(Fetcher, "connect_first", connect)
        patch.setattr(local, "_run_pool", lambda todo, workers, *rest: local._run_here(todo, *rest))
        forbidden = ImageServer(("127.0.0.2", server.server_port))
        threading.Thread(target=forbidden.serve_forever, daemon=True).start()
        urls = {kind: server.url(kind, n) for n, kind in enumerate(URLS)}
        urls |= {f"hop {n}": server.url("hop", n) for n in HOPS}
        for n, target in enumerate(TARGETS):
            urls[f"to {target}"] = f"{server.url('to', n)}?{target.format(port=server.server_port)}"
        urls |= {"flipped": server.url("flipped", 7)}
        urls |= {"rebinding": f"http://rebinding.example:{server.server_port}/ok/99.png"}
        lines = [line for n, (name, url) in enumerate(urls.items()) for line in (
            f"the fault {name}\t{url}\n", f"the good {name}\t{server.url('ok', 200 + n)}\n"
        )]  # fmt: skip
        (folder / "list.tsv").write_text("".join(lines), encoding="utf-8")
        places.chdir(folder)
        assert main(["prepare", "--captions", "list.tsv", "-o", "c", "--holdout", "0", "-q"]) == 0
        outcomes = read_outcomes(folder / "c", lines)
        yield Asked(outcomes, server, forbidden, connected)
        forbidden.shutdown()
        forbidden.server_close()
    fetch.RESOLVED.clear()


@pytest.mark.parametrize("kind", URLS)
def test_a_url_with_a_fault_has_its_reason_after_as_many_requests(asked: Asked, kind: str):
    outcome, requests = URLS[kind]
    assert asked.outcomes[f"the fault {kind}"] == outcome
    found = sum(count for path, count in asked.server.asked.items() if path.startswith(f"/{kind}/"))
    assert requests is None or found == requests


def test_a_fault_costs_no_other_url(asked: Asked):
    good = {name: outcome for name, outcome in asked.outcomes.items() if name.startswith("the good")}
    assert set(good.values()) == {KEPT}
    assert len(good) == len(URLS) + len(HOPS) + len(TARGETS) + 2
    assert len(asked.outcomes) == 2 * len(good)
    assert asked.outcomes["the fault flipped"] in (KEPT, "truncated", "broken")


@pytest.mark.parametrize("hops", HOPS)
def test_redirects_are_counted(asked: Asked, hops: int):
    assert asked.outcomes[f"the fault hop {hops}"] == HOPS[hops]


@pytest.mark.parametrize("target", TARGETS)
def test_a_redirect_to_a_place_that_is_not_public_is_not_followed(asked: Asked, target: str):
    assert asked.outcomes[f"the fault to {target}"] == TARGETS[target]
    assert not asked.forbidden.asked


def test_a_name_that_resolves_otherwise_the_second_time_is_asked_at_the_address_that_was_checked(asked: Asked):
    assert asked.outcomes["the fault rebinding"] == KEPT
    assert set(asked.connected) == {"127.0.0.1"}


# -- images ---


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _images() -> dict[str, tuple[bytes, tuple[int, int], tuple[int, int, int]]]:
    turned = Image.Exif()
    turned[0x0112] = 6
    red = Image.new("RGB", (40, 30), "red")
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "blue")]}
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = palette.getpixel((0, 0))
    return {
        "exif-6.jpg": (encode(red, "JPEG", exif=turned), (30, 40), (254, 0, 0)),
        "cmyk.jpg": (encode(red.convert("CMYK"), "JPEG"), (40, 30), (254, 0, 0)),
        "sixteen.png": (encode(Image.new("I;16", (40, 30), 30_000)), (40, 30), (117, 117, 117)),
        "la.png": (encode(clear.convert("LA")), (40, 30), (255, 255, 255)),
        "rgba.png": (encode(clear), (40, 30), (255, 255, 255)),
        "palette.png": (encode(palette), (40, 30), (255, 255, 255)),
        "bit.png": (encode(Image.new("1", (40, 30), 1)), (40, 30), (255, 255, 255)),
        "moving.gif": (encode(red, "GIF", **frames), (40, 30), (254, 0, 0)),
        "moving.webp": (encode(red, "WEBP", lossless=True, **frames), (40, 30), (255, 0, 0)),
        "still.avif": (encode(red, "AVIF"), (40, 30), (255, 0, 0)),
    }


IMAGES = _images()
"""A kind of image: its bytes, the size and the colour that it is stored with (within 3 levels)."""


def test_images_of_every_kind_have_their_size_and_their_colour(tmp_path, capsys):
    put(tmp_path / "f", {f"a/{name}": data for name, (data, _, _) in IMAGES.items()})
    report, _ = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c", "--size", "8")
    assert report["rejected"] == {}
    found = rows_of(tmp_path / "c")
    for name, (_, (width, height), colour) in IMAGES.items():
        with Image.open(io.BytesIO(found[f"f:a/{name}"].image)) as image:
            assert (image.width > image.height) == (width > height), name
            seen = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
        assert max(abs(a - b) for a, b in zip(seen, colour, strict=True)) <= 3, (name, seen)


# -- captions and lists ---

CAPTIONS = {
    b"a red door": "a red door",
    b'a "quoted" door': 'a "quoted" door',
    b"a door\0 with a nul": "a door with a nul",
    b"\xef\xbb\xbfa door with a mark": "a door with a mark",
    b"": None,
    b"   ": None,
    b"door " * 200_000: None,
    "a door \U0001f6aa".encode(): "a door \U0001f6aa",
    "דלת אדומה".encode(): "דלת אדומה",
    b"IMG_0012.JPG": None,
    b"a <b>bold</b> &amp; red door": "a bold & red door",
}
"""Bytes of a caption, and the stored one; None: the row is left out."""


def test_odd_captions_lose_no_neighbour(tmp_path, capsys):
    files = {f"{n}.png": encode(Image.new("RGB", (24, 24), (n, 99, 0))) for n in range(2 * len(CAPTIONS))}
    put(tmp_path, files)
    lines = b"".join(b"%d.png\t%s\n%d.png\tneighbour %d\n" % (2 * n, t, 2 * n + 1, n) for n, t in enumerate(CAPTIONS))
    (tmp_path / "list.tsv").write_bytes(b"image\tcaption\n" + lines)
    report, _ = prepared(capsys, "--captions", tmp_path / "list.tsv", "-o", tmp_path / "c", "--holdout", "0")
    found = {key.partition(":")[2]: row.texts for key, row in rows_of(tmp_path / "c", kind="captions").items()}
    for n, stored in enumerate(CAPTIONS.values()):
        assert found[f"{2 * n + 1}.png"] == (f"neighbour {n}",)
        assert found.get(f"{2 * n}.png") == (None if stored is None else (stored,))
    assert report["rows"] + sum(report["rejected"].values()) == len(files)
    assert report["rejected"].keys() == {"bad_text", "no_text", "bad_line"}  # the last one: a line of a megabyte


LISTS = {
    "CRLF": (b"image\tcaption\r\na.png\ta door\r\nb.png\ta gate\r\n", None),
    "no final newline": (b"image\tcaption\na.png\ta door\nb.png\ta gate", None),
    "no header": (b"a.png\ta door\nb.png\ta gate\n", None),
    "turned columns": (b"a door\ta.png\na gate\tb.png\n", None),
    "many bad lines": (b"image\tcaption\n" + b"a.png\ta door\nlonely\n" * 9, "line 3"),
    "a byte 0xff": (b"image\tcaption\na.png\ta door\nb.png\ta \xff gate\n", "line 3, byte 9 (0xff): not UTF-8"),
    "half a surrogate pair": (b"image\tcaption\na.png\ta door\nb.png\ta \xed\xa0\x80 gate\n", "line 3, byte 9 (0xed)"),
    "compressed": (gzip.compress(b"image\tcaption\na.png\ta door\n"), "is compressed by gzip, not a list"),
    "a web page": (b"\n<!DOCTYPE html><html>log in\tfirst</html>\n", "is a web page, not a list"),
    "an image": (encode(Image.new("RGB", (9, 9))), "is an image, not a list"),
    "no caption column": (b"image\na.png\nb.png\n", "no caption column"),
}
"""A list, and the words of the error; None: it has two rows."""


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_read_or_refused_in_one_line(name, tmp_path, capsys):
    content, words = LISTS[name]
    put(tmp_path, {"a.png": encode(Image.new("RGB", (24, 24))), "b.png": encode(Image.new("RGB", (24, 24), "red"))})
    (tmp_path / "list.tsv").write_bytes(content)
    _, err = prepared(capsys, "--captions", tmp_path / "list.tsv", "-o", tmp_path / "c", code=0 if words is None else 2)
    if words is None:
        assert {row.texts for row in rows_of(tmp_path / "c", kind="captions").values()} == {("a door",), ("a gate",)}
    else:
        assert words in err
        assert "Traceback" not in err


@pytest.mark.parametrize("label", ["1.5", "-3", "7", "fox"])
def test_a_label_that_is_not_a_class_is_an_error_with_its_line(label, tmp_path, capsys):
    put(tmp_path, {"a.png": encode(Image.new("RGB", (24, 24)))})
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "list.csv").write_text(f"image,label\na.png,{'cat' if label == 'fox' else 0}\nb.png,{label}\n")
    argv = ("--labels", f"{tmp_path}/list.csv?classes={tmp_path}/names.txt", "-o", tmp_path / "c")
    _, err = prepared(capsys, *argv, code=2)
    assert "line 3" in err


def test_without_a_network_a_known_name_says_what_to_put_where(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("UNICL_DATA", str(tmp_path))
    _, err = prepared(capsys, "--labels", "cifar10", "-o", tmp_path / "c", code=2)
    assert "not in the hub's cache, and HF_HUB_OFFLINE is set" in err
    assert "download cifar-10-python.tar.gz (170 MB, md5 c58f30108f718f92721af3b95e74349a) from" in err
    assert err.rstrip().endswith(f"then run: unicl prepare --labels cifar10 --data-dir {tmp_path}")
    assert not (tmp_path / "c").exists()


def test_odd_paths_work(tmp_path, capsys):
    deep = tmp_path.joinpath(*["a long folder name of forty characters .."] * 6, "größe\\x", "naïve 'file'")
    red, black = (encode(Image.new("RGB", (24, 24), colour)) for colour in ("red", "black"))
    put(deep / "f", {"ein Löwe/eins zwei.png": red, "neue\nZeile/1.png": black})
    report, _ = prepared(capsys, "--labels", deep / "f", "-o", deep / "c")
    assert report["rows"] == 2
    assert main(["prepare", "--verify", "-o", str(deep / "c")]) == 0


def test_the_handler_has_each_fault():
    assert [kind for kind in URLS if not hasattr(FaultyHandler, f"do_{kind}")] == []
