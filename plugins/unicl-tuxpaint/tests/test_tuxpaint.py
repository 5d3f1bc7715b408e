"""The source of stamps, on a small folder of the same layout, and on Debian's package where it is installed."""

import json
import shutil
import subprocess
import wave
from pathlib import Path

import pytest
from PIL import Image
from unicl_tuxpaint import DEBIAN, tuxpaint
from unicl_tuxpaint.stamps import find_stamps, read_captions

from unicl_cli.api import UniclError
from unicl_cli.cli import main
from unicl_cli.testing import unicl

COLOURS = iter(range(1, 200))


def draw(path, colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (next(COLOURS) if colour is None else colour, 0, 0)).save(path)


def write_sound(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(path.name.encode() * 20)


def caption(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def stamps(tmp_path):
    root = tmp_path / "stamps"
    birds, cartoon, math = root / "animals/birds", root / "animals/birds/cartoon", root / "symbols/math"
    draw(birds / "duck.png")
    caption(birds / "duck.txt", "A duck.", "de.utf8=Eine Ente.", "pt_BR.utf8=Um pato.", "ca@valencia.utf8=Un ànec.")
    for name in ("duck_desc.wav", "duck_desc_de.wav", "duck_desc_pt_br.wav", "duck.wav", "swan_desc_de.wav"):
        write_sound(birds / name)
    draw(birds / "duck_mirror.png")
    draw(birds / "owl.png")
    caption(birds / "owl.txt", "An owl.", "de.utf8=Eine Eule.")
    (birds / "swan.svg").write_text("<svg/>")
    draw(cartoon / "robin.png")
    draw(root / "symbols/cartoon/face.png")
    draw(math / "1.png")
    caption(math / "1.txt", "The number 1.", "de.utf8=Die Zahl 1.")
    for name in ("1_de.wav", "1_desc_de.wav"):
        write_sound(math / name)
    (root / "index.dat").write_text("x")
    return root


def rows_of(path, kind="captions", **options):
    source = tuxpaint(path=str(path), kind=kind, **options)
    return {row.key: row for split in source.splits for row in source.rows(split)}, source


def test_captions_are_the_first_line_and_one_of_each_language(stamps):
    assert read_captions(stamps / "animals/birds/duck.txt") == {
        "en": "A duck.",
        "de": "Eine Ente.",
        "pt_BR": "Um pato.",
        "ca@valencia": "Un ànec.",
    }


def test_rows_have_the_captions_of_the_languages(stamps):
    rows, source = rows_of(stamps)
    assert rows["animals/birds/duck.png"].texts == ("A duck.",)
    assert rows["animals/birds/cartoon/robin.png"].texts == ()
    rows, _ = rows_of(stamps, languages="de,PT_br")
    assert rows["animals/birds/duck.png"].texts == ("Eine Ente.", "Um pato.")
    rows, _ = rows_of(stamps, languages="all")
    assert rows["animals/birds/duck.png"].texts == ("Un ànec.", "Eine Ente.", "A duck.", "Um pato.")
    assert "animals/birds/duck_mirror.png" not in rows
    assert source.notes == [
        "tuxpaint: left out: mirrored or flipped images of another stamp: 1",
        "tuxpaint: left out: SVG drawings (save them as PNG to read them): 1",
        "tuxpaint: left out: sounds whose image is not read: 1",
        "tuxpaint: left out: images without a caption: 2",
    ]


def test_categories_are_classes_named_apart(stamps):
    rows, source = rows_of(stamps, "labels")
    assert [(c.key, c.names) for c in source.classes] == [
        ("animals/birds", ("birds",)),
        ("animals/birds/cartoon", ("birds cartoon",)),
        ("symbols/cartoon", ("symbols cartoon",)),
        ("symbols/math", ("math",)),
    ]
    assert rows["symbols/math/1.png"].label == 3
    assert rows["symbols/math/1.png"].texts == ("The number 1.",)
    assert [c.key for c in rows_of(stamps, "labels", depth=1)[1].classes] == ["animals", "symbols"]


def test_spoken_names_make_rows_with_the_caption_in_their_language(stamps):
    rows, source = rows_of(stamps, languages="en,de", audio="name")
    duck = {key.partition("#")[2]: row for key, row in rows.items() if "duck" in key}
    assert {mark: (row.texts, row.media[0][1]) for mark, row in duck.items()} == {
        "en": (("A duck.",), "animals/birds/duck_desc.wav"),
        "de": (("Eine Ente.",), "animals/birds/duck_desc_de.wav"),
    }
    number = {key.partition("#")[2]: row for key, row in rows.items() if "math/1" in key}
    assert {mark: (row.texts, bool(row.media)) for mark, row in number.items()} == {
        "de": (("Die Zahl 1.",), True),
        "": (("The number 1.",), False),
    }
    assert rows["animals/birds/owl.png"].texts == ("An owl.", "Eine Eule.")
    read = source.read(duck["de"])
    assert read["audio"] == (stamps / "animals/birds/duck_desc_de.wav").read_bytes()
    assert read["image"] == (stamps / "animals/birds/duck.png").read_bytes()


def test_a_sound_has_all_captions_and_a_spoken_sound_those_of_its_language(stamps):
    rows, _ = rows_of(stamps, languages="en,de", audio="sound")
    assert rows["animals/birds/duck.png#sound"].texts == ("A duck.", "Eine Ente.")
    assert rows["symbols/math/1.png#sound-de"].texts == ("Die Zahl 1.",)
    assert "animals/birds/duck.png" not in rows
    both, _ = rows_of(stamps, languages="en,de", audio="both")
    assert {key.partition("#")[2] for key in both if "duck" in key} == {"en", "de", "sound"}


def test_images_alone_are_pairs_without_text_or_label(stamps):
    rows, source = rows_of(stamps, "images", languages="all", audio="both")
    assert sorted(rows) == [
        "animals/birds/duck.png#de",
        "animals/birds/duck.png#en",
        "animals/birds/duck.png#pt_BR",
        "animals/birds/duck.png#sound",
        "symbols/math/1.png#de",
        "symbols/math/1.png#sound-de",
    ]
    assert all(row.texts == () and row.label == -1 and row.media for row in rows.values())
    assert "tuxpaint: left out: images without a sound in these languages: 3" in source.notes
    assert len(rows_of(stamps, "images")[0]) == 5


def test_the_same_image_name_or_caption_is_never_in_two_splits(tmp_path):
    root = tmp_path / "s"
    for number in range(60):
        draw(root / f"a/{number}.png")
        caption(root / f"a/{number}.txt", f"Thing {number}.")
    for number in range(20):
        draw(root / f"b/cartoon/{number}.png")  # the same name
        shutil.copy(root / f"a/{number + 20}.png", root / f"b/copy{number}.png")  # the same bytes
        draw(root / f"c/other{number}.png")
        caption(root / f"c/other{number}.txt", f"thing {number + 40}")  # the same caption
    source = tuxpaint(path=str(root), kind="images")
    splits = {row.ref: split for split in source.splits for row in source.rows(split)}
    counts = {split: sum(of == split for of in splits.values()) for split in ("train", "val", "test")}
    assert len(splits) == 120
    assert min(counts.values()) > 0
    for number in range(20):
        assert splits[f"a/{number}.png"] == splits[f"b/cartoon/{number}.png"]
        assert splits[f"a/{number + 20}.png"] == splits[f"b/copy{number}.png"]
        assert splits[f"a/{number + 40}.png"] == splits[f"c/other{number}.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": "xx"}, "no captions in language 'xx'"),
        ({"languages": "en,"}, "no captions in language ''"),
        ({"languages": "ca@valencia", "audio": "name"}, "no name in ca@valencia"),
    ],
)
def test_what_no_stamp_has_is_refused(stamps, options, message):
    with pytest.raises(UniclError, match=message):
        rows_of(stamps, **options)


def test_captions_that_are_not_utf8_are_refused(stamps):
    (stamps / "animals/birds/owl.txt").write_bytes(b"An owl.\nde.utf8=\xff\n")
    with pytest.raises(UniclError, match=r"owl\.txt: is not UTF-8"):
        find_stamps(stamps)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_without_stamps_is_one_line_that_names_the_package(tmp_path, name, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["prepare", "--images", f"tuxpaint?path={tmp_path / name}", "-o", str(tmp_path / "c")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: tuxpaint: {tmp_path / name}: no s")
    assert "apt-get install tuxpaint-stamps-default" in hint


def test_prepare_stores_images_captions_and_sounds(stamps, tmp_path, capsys):
    src = f"tuxpaint?path={stamps}&languages=en,de&audio=both"
    assert main(["prepare", "--captions", src, "-o", str(tmp_path / "c"), "--workers", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rejected"] == {"no_text": 2}
    kept = [line["media"]["audio"] for line in report["sources"]]
    assert sum(of["rows"] for of in kept) == 5
    assert sum(of["missing"] for of in kept) == 2


@pytest.fixture(scope="session")
def debian(tmp_path_factory):
    """Debian's stamps: installed, or downloaded and unpacked."""
    if Path(DEBIAN).is_dir():
        return Path(DEBIAN)
    folder = tmp_path_factory.mktemp("debian")
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        pytest.skip("needs a Debian system")
    download = ["apt-get", "download", "tuxpaint-stamps-default"]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("tuxpaint-stamps-default cannot be downloaded")
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder / "x")], check=True)
    return folder / f"x{DEBIAN}"


@pytest.mark.slow
def test_the_real_stamps_become_a_corpus(debian, tmp_path):
    src = f"tuxpaint?path={debian}&languages=ca,fr&audio=name"
    report = json.loads(unicl("prepare", "--captions", src, "-o", tmp_path / "c", "--json"))
    assert report["rejected"].keys() <= {"no_text"}  # spoken names without a caption in their language
    assert sum(report["rejected"].values()) < 20
    assert {line["split"] for line in report["sources"]} == {"train", "val", "test"}
    assert sum(line["media"]["audio"]["rows"] for line in report["sources"]) > 1000
    assert len(find_stamps(debian).languages) > 60
