"""The inputs of `zeroshot`: lists as they come in, folders, URLs, single images; and the batches it makes of them."""

import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unicl_cli.data.fetch import FetchError
from unicl_cli.data.pictures import decode
from unicl_cli.inference import image_inputs
from unicl_cli.inference.batch_stream import BatchStream
from unicl_cli.inference.image_inputs import ImageInput, find_images, find_in_folder, find_input, read_image, read_list


def entries(data: bytes, cuts: list[int], separator: bytes = b"\n") -> list[str]:
    ends = sorted({min(cut, len(data)) for cut in cuts} - {0})
    parts = [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
    waiting = [part for part in parts if part]
    return list(read_list(lambda: waiting.pop(0) if waiting else b"", separator))


def test_a_list_has_one_path_a_line_whatever_wrote_it():
    assert entries(b"\xef\xbb\xbfa b.png\r\n\n  \nc\td.png\n\xffodd.png", []) == [
        "a b.png",
        "c\td.png",
        "\udcffodd.png",
    ]
    assert entries(b"a\nb.png\0c.png\0", [], b"\0") == ["a\nb.png", "c.png"]
    assert entries(b"", []) == []


def test_an_entry_without_end_is_kept_in_part_and_the_others_are_answered(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    long = "é" * 200_000
    data = f"{long}\na.png\nhttps://x.example/{long}\r\n{'b' * 5000}\n{long}".encode()
    found = entries(data, list(range(0, len(data), 5000)))
    assert max(map(len, found)) <= image_inputs.MAX_ENTRY + 5000
    answers = [answer for entry in found for answer in find_input(entry)]
    assert [answer.problem for answer in answers] == ["File name too long", None, *["File name too long"] * 3]
    assert [answer.path[:3] for answer in answers] == ["ééé", "a.p", "htt", "bbb", "ééé"]
    assert [image.problem for image in find_images(["c" * 5000, "c" * 5000 + "*", "a.png"])] == [
        "File name too long",
        "the pattern matches no file",
        None,
    ]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r\0\ufeff", exclude_categories=("C",)), min_size=1)),
    st.lists(st.integers(0, 200)),
)
@settings(max_examples=50, deadline=None)
def test_where_a_pipe_cuts_the_list_changes_nothing(names, cuts):
    wanted = [name for name in names if name.encode().strip()]
    for separator in (b"\n", b"\0"):
        assert entries(separator.join(name.encode() for name in names), cuts, separator) == wanted


def test_a_list_on_standard_input_holds_files_folders_and_urls_taken_literally(tmp_path, monkeypatch):
    names = ["a.png", "b [1].png", "sub/c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = [str(tmp_path / name) for name in ("b [1].png", "sub", "*.png")] + ["https://x.example/y.png"]
    ends = os.pipe()
    os.write(ends[1], "\n".join(wanted).encode())
    os.close(ends[1])
    with os.fdopen(ends[0]) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        found = list(find_images([str(tmp_path / "a.png"), "-"]))
    assert [Path(picture.path).name for picture in found] == ["a.png", "b [1].png", "c.png", "*.png", "y.png"]
    assert [picture.problem for picture in found] == [None, None, None, "no such file", None]


def test_a_folder_names_what_it_could_not_look_into(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.PNG")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(find_in_folder(str(tmp_path))) == [
        ImageInput(str(tmp_path / "a.PNG")),
        ImageInput(str(tmp_path / "sub"), "Permission denied"),
    ]


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "sub" / "a.png")
    assert [picture.path for picture in find_in_folder(str(tmp_path))] == [str(tmp_path / "sub" / "a.png")]


def test_urls_are_downloaded_with_leave_alone():
    url = ImageInput("https://host.example/a.png")
    assert read_image(url, lambda data: data) == "a URL: add --allow-url to download it"
    assert read_image(url, lambda data: data, lambda where: where.encode()) == b"https://host.example/a.png"

    def fail(where: str) -> bytes:
        raise FetchError("http_404", "Not Found")

    assert read_image(url, lambda data: data, fail) == "http_404: Not Found"


def test_a_file_without_end_is_read_no_further_than_the_bound(monkeypatch, tmp_path):
    monkeypatch.setattr(image_inputs, "MAX_BYTES", 1000)
    assert read_image(ImageInput("/dev/zero"), decode) == "not a regular file"
    large = tmp_path / "large.png"
    large.touch()
    os.truncate(large, 10**12)
    assert read_image(ImageInput(str(large)), decode) == "more than 1,000 bytes"
    assert read_image(ImageInput("-", data=b"x" * 1001), decode) == "more than 1,000 bytes"
    assert read_image(ImageInput("-", data=b"x"), decode) == "not an image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_an_image_that_is_cut_anywhere_has_a_reason_in_words(kind, tmp_path):
    path = tmp_path / "a"
    Image.effect_noise((16, 16), 90).convert("RGB").save(path, kind)
    data = path.read_bytes()
    for size in (1, 3, 8, 12, 20, 33, 40, 60, len(data) // 2):
        found = read_image(ImageInput("-", data=data[:size]), decode)
        assert not isinstance(found, str) or re.search("[a-z]{3}", found), f"{size} bytes: {found!r}"


def test_only_regular_files_are_read(tmp_path):
    """A pipe would wait for its writer for ever."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "c.png"))
    (tmp_path / "d.png").symlink_to("/dev/zero")
    (tmp_path / "e.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "f.png").symlink_to("nowhere")
    answers = [read_image(image, decode) for image in find_in_folder(str(tmp_path))]
    assert answers[0].size == (4, 4)
    assert answers[1:] == ["not a regular file"] * 4 + ["No such file or directory"]
    assert read_image(ImageInput(str(tmp_path)), decode) == "not a regular file"
    assert [read_image(image, decode) for image in find_images([str(tmp_path / "b.png")])] == ["not a regular file"]


def test_batches_come_in_order_and_hold_few_items():
    taken: list[int] = []

    def source():
        for item in range(200):
            taken.append(item)
            yield item

    seen: list[int] = []
    for part in BatchStream(source(), lambda x: x * x, 8, patience=None, threads=4):
        assert len(part) == 8
        seen += [item for item, square in part if square == item * item]
        assert len(taken) <= len(seen) + 4 * 8
    assert seen == list(range(200))


def test_what_is_there_is_answered_while_the_source_waits():
    """The first batch is out before the second item is sent: nothing waits for a full batch."""
    go = threading.Event()

    def source():
        yield "first"
        assert go.wait(20)
        yield "second"

    parts = iter(BatchStream(source(), len, 32, patience=0.01, threads=1))
    assert next(parts) == [("first", 5)]
    go.set()
    assert list(parts) == [[("second", 6)]]


@pytest.mark.parametrize("where", ["source", "work"])
def test_what_goes_wrong_comes_out_behind_what_went_well(where):
    def source():
        yield from (1, 2)
        if where == "source":
            raise KeyError("broken")
        yield 0

    parts = iter(BatchStream(source(), lambda x: 1 // x, 2, patience=None, threads=2))
    assert next(parts) == [(1, 1), (2, 0)]
    with pytest.raises((KeyError, ZeroDivisionError)):
        next(parts)


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    parts = iter(BatchStream(iter(range(10**9)), lambda x: x, 4, patience=None, threads=2))
    assert len(next(parts)) == 4
    parts.close()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before
