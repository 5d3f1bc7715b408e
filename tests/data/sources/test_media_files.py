"""Media beside images in folders and lists: pairs by name and by column, and halves that are missing."""

import json
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.media import KINDS
from unicl_cli.data.sources.media_files import ENDINGS, split_name
from unicl_cli.data.sources.resolve import open_source

NAMES = ("1", "2", "3")


def write_wav(path, frames=80):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * frames))


def write_image(path, value):
    Image.new("RGB", (12, 10), (value, 0, 0)).save(path)


def write_map(path, value):
    Image.fromarray(np.full((10, 12), value, np.uint16)).save(path)


def write_pairs(folder, names=NAMES):
    """Images with all four kinds, each of another content."""
    folder.mkdir(parents=True)
    for name in names:
        number = int(name)
        write_image(folder / f"{name}.png", number)
        write_wav(folder / f"{name}.wav", 80 + number)
        write_map(folder / f"{name}.depth.png", number)
        write_map(folder / f"{name}.thermal.png", 100 + number)
        np.save(folder / f"{name}.imu.npy", np.full((number, 6), number, np.float32))
        (folder / f"{name}.txt").write_text(f"caption {name}\n")


@pytest.fixture
def photos(tmp_path):
    write_pairs(tmp_path / "photos/cat", NAMES)
    write_pairs(tmp_path / "photos/dog", ("4", "5"))
    return tmp_path / "photos"


def prepare_report(capfd, *argv):
    """The report of `prepare --json`, and the notes on stderr."""
    assert main(["prepare", *map(str, argv), "--json"]) == 0
    streams = capfd.readouterr()
    return json.loads(streams.out), streams.err


def media_by_key(corpus, split, kind):
    table = open_corpus(corpus).table(split, kind)
    return {(row := table.read(at, media=True)).key.partition(":")[2]: row.media for at in range(len(table))}


def refusal(capfd, *argv):
    assert main(["prepare", *map(str, argv)]) == 2
    return capfd.readouterr().err


@pytest.mark.parametrize("kind", ["labels", "captions", "images"])
def test_a_folder_gives_each_image_the_media_of_its_name(photos, kind, tmp_path, capfd):
    src = f"{photos}?media=audio,depth,thermal,imu"
    report, _ = prepare_report(capfd, f"--{kind}", src, "-o", tmp_path / "c")
    found = media_by_key(tmp_path / "c", "train", kind)
    assert sorted(found) == ["cat/1.png", "cat/2.png", "cat/3.png", "dog/4.png", "dog/5.png"]
    for key, media in found.items():
        files = {of: ENDINGS[of][0] for of in KINDS}
        assert media == {of: (photos / key.replace(".png", end)).read_bytes() for of, end in files.items()}
    assert report["sources"][0]["media"] == {of: {"rows": 5, "missing": 0} for of in KINDS}
    assert report["sources"][0]["classes"] == (2 if kind == "labels" else 0)


def test_a_missing_half_is_counted_by_kind_and_shifts_no_pair(photos, tmp_path, capfd):
    (photos / "cat/2.wav").unlink()
    (photos / "dog/4.depth.png").unlink()
    (photos / "dog/5.depth.png").unlink()
    write_wav(photos / "cat/2b.wav")
    write_map(photos / "dog/6.depth.png", 6)
    report, notes = prepare_report(capfd, "--images", f"{photos}?media=audio,depth", "-o", tmp_path / "c")
    found = media_by_key(tmp_path / "c", "train", "images")
    assert {key: sorted(media) for key, media in found.items()} == {
        "cat/1.png": ["audio", "depth"],
        "cat/2.png": ["depth"],
        "cat/3.png": ["audio", "depth"],
        "dog/4.png": ["audio"],
        "dog/5.png": ["audio"],
    }
    assert found["cat/3.png"]["audio"] == (photos / "cat/3.wav").read_bytes()
    assert found["cat/3.png"]["depth"] == (photos / "cat/3.depth.png").read_bytes()
    counted = {"audio": {"rows": 4, "missing": 1}, "depth": {"rows": 3, "missing": 2}}
    assert report["sources"][0]["media"] == counted
    assert "photos: images without audio (1): cat/2.png" in notes
    assert "photos: images without depth (2): dog/4.png, dog/5.png" in notes
    assert "photos: files of audio without an image are left out (1): cat/2b.wav" in notes
    assert "photos: files of depth without an image are left out (1): dog/6.depth.png" in notes
    assert "files of media that media= does not name are left out: imu, thermal" in notes
    assert main(["inspect", str(tmp_path / "c"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sources"][0]["media"] == counted


def test_the_tables_say_what_is_missing(photos, tmp_path, capfd):
    (photos / "cat/2.wav").unlink()
    assert main(["prepare", "--images", f"{photos}?media=audio,imu", "-o", str(tmp_path / "c")]) == 0
    line = "media of photos images train: audio in 4 rows (missing in 1), imu in 5 rows"
    assert line in capfd.readouterr().out
    assert main(["inspect", str(tmp_path / "c")]) == 0
    shown = capfd.readouterr().out
    assert "Media beside the images" in shown
    assert [line.split()[-4:-1:2] for line in shown.splitlines() if "audio" in line] == [["4", "1"]]


def test_media_that_cannot_be_used_leave_out_their_row_with_a_reason(photos, tmp_path, capfd):
    (photos / "cat/2.wav").write_bytes(b"")
    write_map(photos / "cat/3.depth.png", 1)
    Image.new("L", (12, 10)).save(photos / "cat/3.depth.png")
    report, _ = prepare_report(capfd, "--labels", f"{photos}?media=audio,depth", "-o", tmp_path / "c")
    assert report["rejected"] == {"bad_media": 2}
    rejects = "".join(file.read_text() for file in (tmp_path / "c/rejects").iterdir())
    assert "audio: cat/2.wav: an empty file" in rejects
    assert "depth: cat/3.depth.png: a PNG of 8-bit grey" in rejects
    assert sorted(media_by_key(tmp_path / "c", "train", "labels")) == ["cat/1.png", "dog/4.png", "dog/5.png"]


def test_a_kind_that_no_row_is_left_with_is_told(photos, tmp_path, capfd):
    for file in photos.rglob("*.wav"):
        file.write_bytes(b"")
    write_image(photos / "dog/7.png", 7)
    report, notes = prepare_report(capfd, "--images", f"{photos}?media=audio", "-o", tmp_path / "c")
    assert report["rows"] == 1
    assert "photos: no row has audio: see the rejects" in notes


def test_of_several_sounds_of_an_image_one_is_taken_and_the_others_are_told(photos, tmp_path, capfd):
    (photos / "cat/1.OGG").write_bytes(b"OggS")
    write_wav(photos / "cat/1.flac")
    report, notes = prepare_report(capfd, "--images", f"{photos}?media=audio", "-o", tmp_path / "c")
    assert report["rejected"] == {}
    assert "further files of media of an image are left out (2): cat/1.flac, cat/1.OGG" in notes


def test_without_the_option_maps_stay_images_and_are_told(photos, tmp_path, capfd):
    report, notes = prepare_report(capfd, "--images", photos, "-o", tmp_path / "c")
    assert report["rows"] == 15
    assert "images named like the depth or heat of another image are separate rows (10)" in notes
    assert "media=depth or media=thermal" in notes


def test_an_edited_sound_is_another_plan(photos, tmp_path, capfd):
    argv = ["prepare", "--images", f"{photos}?media=audio", "-o", str(tmp_path / "c")]
    assert main(argv) == 0
    write_wav(photos / "cat/1.wav", 3)
    capfd.readouterr()
    assert main(argv) == 2
    assert "has changed (contents)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("media=audo", "media=audo: unknown kind 'audo'; did you mean 'audio'?"),
        ("media=audio,audio", "names a kind twice"),
        ("media=audio,", "unknown kind ''"),
    ],
)
def test_options_that_name_no_kind_are_refused(photos, option, message, tmp_path, capfd):
    assert message in refusal(capfd, "--images", f"{photos}?{option}", "-o", tmp_path / "c")


def test_a_kind_without_a_file_is_refused(photos, tmp_path, capfd):
    for file in photos.rglob("*.imu.npy"):
        file.unlink()
    message = refusal(capfd, "--images", f"{photos}?media=imu", "-o", tmp_path / "c")
    assert f"{photos}: no imu beside the images" in message
    assert "1.imu.npy or 1.imu.csv beside 1.jpg" in message


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/1.WAV", ("a/1", "audio")),
        ("a/1.x.ogg", ("a/1.x", "audio")),
        ("1.Depth.PNG", ("1", "depth")),
        ("1.imu.csv", ("1", "imu")),
        ("1_depth.png", None),
        ("1.csv", None),
    ],
)
def test_a_name_tells_the_kind(name, found):
    assert split_name(name) == found


def write_list(photos, lines, name="list.csv"):
    (photos / name).write_text("\n".join(lines) + "\n")
    return photos / name


def test_columns_of_a_list_name_the_media(photos, tmp_path, capfd):
    lines = ["file,sound,depth,move,caption"]
    lines += [f"cat/{n}.png,cat/{n}.wav,cat/{n}.depth.png,cat/{n}.imu.npy,a cat {n}" for n in NAMES]
    lines += ["dog/4.png,,cat/9.depth.png,,a dog 4", "dog/5.png,dog/5.wav,,,a dog 5"]
    path = write_list(photos, lines)
    src = f"{path}?audio=sound&depth=depth&imu=3"
    report, notes = prepare_report(capfd, "--captions", src, "-o", tmp_path / "c")
    found = media_by_key(tmp_path / "c", "train", "captions")
    assert {key: sorted(media) for key, media in found.items()} == {
        **{f"cat/{n}.png": ["audio", "depth", "imu"] for n in NAMES},
        "dog/4.png": [],
        "dog/5.png": ["audio"],
    }
    assert found["cat/2.png"]["imu"] == (photos / "cat/2.imu.npy").read_bytes()
    assert report["sources"][0]["media"]["depth"] == {"rows": 3, "missing": 2}
    assert "list.csv: files of depth that do not exist (1): cat/9.depth.png" in notes
    assert "list.csv: images without audio (1): dog/4.png" in notes


def test_lines_of_one_image_share_their_media_unless_they_differ(photos, tmp_path, capfd):
    path = write_list(photos, ["image,audio,caption", "cat/1.png,,one", "cat/1.png,cat/1.wav,two", "cat/2.png,,three"])
    prepare_report(capfd, "--captions", f"{path}?audio=audio", "-o", tmp_path / "c")
    found = media_by_key(tmp_path / "c", "train", "captions")
    assert {key: sorted(media) for key, media in found.items()} == {"cat/1.png": ["audio"], "cat/2.png": []}
    path = write_list(photos, ["image,audio,caption", "cat/1.png,cat/2.wav,one", "cat/1.png,cat/1.wav,two"])
    message = refusal(capfd, "--captions", f"{path}?audio=audio", "-o", tmp_path / "d")
    assert "list.csv: an image has more than one audio: line 2 and line 3 (cat/1.png: cat/2.wav, cat/1.wav)" in message


def test_a_list_whose_media_do_not_exist_is_refused(photos, tmp_path, capfd):
    path = write_list(photos, ["image,audio,caption", "cat/1.png,sounds/1.wav,one"])
    message = refusal(capfd, "--captions", f"{path}?audio=audio", "-o", tmp_path / "c")
    assert "no row has audio: its files do not exist" in message
    path = write_list(photos, ["image,audio,caption", "cat/1.png,https://x.org/1.wav,one"])
    assert "audio holds no path of a file" in refusal(capfd, "--captions", f"{path}?audio=audio", "-o", tmp_path / "c")
    assert "no column 'sound'" in refusal(capfd, "--captions", f"{path}?audio=sound", "-o", tmp_path / "c")


def test_media_inside_a_parquet_list_are_read_from_their_rows(photos, tmp_path, capfd):
    images = [(photos / f"cat/{n}.png").read_bytes() for n in NAMES]
    sounds = [(photos / "cat/1.wav").read_bytes(), None, (photos / "cat/3.wav").read_bytes()]
    columns = {
        "image": images,
        "caption": [f"cat {n}" for n in NAMES],
        "clip": [{"bytes": sound, "path": None} for sound in sounds],
    }
    pq.write_table(pa.table(columns), photos / "list.parquet")
    src = f"{photos / 'list.parquet'}?audio=clip"
    report, _ = prepare_report(capfd, "--captions", src, "-o", tmp_path / "c")
    found = media_by_key(tmp_path / "c", "train", "captions")
    assert found == {f"{at:08d}": {"audio": sound} if sound else {} for at, sound in enumerate(sounds)}
    assert report["sources"][0]["media"] == {"audio": {"rows": 2, "missing": 1}}


def test_cells_without_an_item_are_counted(photos, tmp_path, capfd):
    images = [(photos / f"cat/{n}.png").read_bytes() for n in NAMES]
    columns = {"image": images, "caption": [f"cat {n}" for n in NAMES], "clip": [None, b"", None]}
    pq.write_table(pa.table(columns), photos / "list.parquet")
    src = f"{photos / 'list.parquet'}?audio=clip"
    report, notes = prepare_report(capfd, "--captions", src, "-o", tmp_path / "c")
    assert report["sources"][0]["media"] == {"audio": {"rows": 0, "missing": 3}}
    assert "no row has audio: the list holds no item of it" in notes


def test_images_of_one_name_that_share_their_media_are_told(photos, tmp_path, capfd):
    Image.open(photos / "cat/1.png").save(photos / "cat/1.jpg")
    _, notes = prepare_report(capfd, "--images", f"{photos}?media=audio", "-o", tmp_path / "c")
    assert "images of one name share its media (2): cat/1.jpg, cat/1.png; give them different names" in notes


def test_shapes_give_pairs_without_texts_and_texts_without_media():
    pairs = open_source("shapes?media=audio&count=3&test=2", "images")
    row = pairs.rows("train")[1]
    assert (row.texts, row.label, sorted(pairs.read(row))) == ((), -1, ["audio", "image"])
    texts = open_source("shapes?count=3", "captions")
    assert sorted(texts.read(texts.rows("train")[1])) == ["image"]
    whole = open_source("shapes?media=audio,imu&captions=true&count=1&test=2", "labels")
    row = whole.rows("test")[1]
    assert row.texts
    assert (row.label, sorted(whole.read(row))) == (1, ["audio", "image", "imu"])


def test_an_image_with_another_sound_is_no_duplicate(tmp_path, capfd):
    for name, frames in (("1", 80), ("2", 80), ("3", 90), ("4", None)):
        (tmp_path / "p").mkdir(exist_ok=True)
        write_image(tmp_path / f"p/{name}.png", 7)
        if frames:
            write_wav(tmp_path / f"p/{name}.wav", frames)
    src = f"{tmp_path / 'p'}?media=audio"
    report, notes = prepare_report(capfd, "--images", src, "-o", tmp_path / "all")
    assert report["rows"] == 4
    assert "3 duplicate rows (same image, kind and split): --dedup exact leaves them out if their media" in notes
    report, _ = prepare_report(capfd, "--images", src, "--dedup", "exact", "--keep-order", "-o", tmp_path / "c")
    assert sorted(media_by_key(tmp_path / "c", "train", "images")) == ["1.png", "3.png", "4.png"]
    assert report["sources"][0]["media"] == {"audio": {"rows": 2, "missing": 1}}
