"""Broken folders and lists through the real command: one line that helps, or rows counted by reason."""

import io
import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus


def png(level=120, size=(40, 40)):
    out = io.BytesIO()
    Image.new("RGB", size, (level, 80, 200 - level // 2)).save(out, "PNG")
    return out.getvalue()


def put(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number % 200))
    return root


@pytest.fixture
def prepare(tmp_path, capsys, monkeypatch):
    """``prepare("labels", src, option, …)``: exit status, report (or None) and what stderr says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNICL_DATA", raising=False)

    def run(kind, src, *argv):
        status = main(["prepare", f"--{kind}", str(src), "-o", "corpus", "--holdout", "0", "--json", *argv])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, json.loads(said.out) if said.out else None, said.err

    return run


@pytest.fixture
def refused(prepare):
    """``refused("labels", src)``: the error and its hint; nothing may be left behind but an empty directory."""

    def run(kind, src, *argv):
        status, report, err = prepare(kind, src, *argv)
        assert (status, report) == (2, None), err
        error, hint = [line for line in err.splitlines() if line.startswith(("error: ", "  hint: "))]
        return error.removeprefix("error: "), hint.removeprefix("  hint: ")

    return run


def rejects(tmp_path):
    files = sorted((tmp_path / "corpus" / "rejects").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


# -- folders ---


def test_litter_in_class_folders_is_counted_or_not_seen_and_never_a_class(tmp_path, prepare):
    data = put(tmp_path / "data", "cat/1.png", "cat/2.JPEG", "cat/.hidden.png", ".git/c/1.png", "Größe ü/1 a.png")
    put(data, "new\nline/1.png", "win\\dows/1.png", "deep/" + "/".join(["d" * 60] * 5) + "/1.png")
    for name, content in {".DS_Store": b"x", "Thumbs.db": b"x", "notes.txt": b"hello", "empty.jpg": b""}.items():
        (data / "cat" / name).write_bytes(content)
    (data / "cat" / "loop").symlink_to(data)
    (data / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (data / "none").mkdir()
    os.mkfifo(data / "cat" / "pipe.png")
    status, report, err = prepare("labels", data)
    assert status == 0
    assert report["rejected"] == {"empty": 1, "missing_file": 1, "read_error": 1}
    assert (report["rows"], report["classes"]) == (6, 5)
    assert "folders without images are not classes (1): none" in err
    assert "files that are not images are ignored (1): .txt 1" in err
    keys = {c.key for c in open_corpus(tmp_path / "corpus").classes}
    assert {"cat", "Größe ü", "new\nline", "win\\dows"} < keys
    assert {row["reason"]: row["ref"] for row in rejects(tmp_path)}["read_error"] == "cat/pipe.png"


@pytest.mark.parametrize(
    ("kind", "files", "message", "hint"),
    [
        ("labels", (), "data: no images in this folder", "image files end in .jpg, .png, .webp"),
        ("labels", ("notes.md",), "data: no images in this folder", "image files end in"),
        ("labels", ("train.tar.gz",), "data: no images in this folder", "unpack train.tar.gz"),
        (
            "captions",
            ("list.csv",),
            "data: no images in this folder",
            r"use the list in this folder as the source: .*data/list\.csv",
        ),
        ("labels", ("1.png", "2.png"), "its images are not in class folders", "make a folder for each class"),
        ("labels", ("train/1.png", "val/2.png"), "its images are not in class folders", "a folder for each class"),
        ("captions", ("a/1.png",), "no captions beside the images", r"write the captions of 1\.jpg into 1\.txt"),
    ],
)
def test_a_folder_that_is_no_source_says_why(kind, files, message, hint, tmp_path, refused):
    (tmp_path / "data").mkdir()
    put(tmp_path / "data", *files)
    error, advice = refused(kind, tmp_path / "data")
    assert message in error
    assert re.search(hint, advice)


def test_a_source_that_is_not_there_names_the_sources_that_are(tmp_path, refused):
    error, hint = refused("labels", tmp_path / "nothing")
    assert error.endswith("nothing: no such folder, list or source")
    assert "unicl prepare --list" in hint
    (tmp_path / "x.zip").write_bytes(b"PK")
    error, hint = refused("labels", tmp_path / "x.zip")
    assert "not a supported list" in error
    assert hint == "unpack it first"


def test_a_picture_of_every_kind_of_damage_is_counted_by_reason(tmp_path, prepare):
    data = put(tmp_path / "data", "cat/1.png", "cat/small.png")
    (data / "cat" / "small.png").write_bytes(png(size=(40, 9)))
    (data / "cat" / "cut.png").write_bytes(png()[:60])
    (data / "cat" / "page.jpg").write_bytes(b"<html>404</html>")
    (data / "cat" / "drawing.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    status, report, _ = prepare("labels", data, "--min-side", "10")
    assert status == 0
    assert report["rejected"] == {"not_image": 1, "too_small": 1, "truncated": 1, "unsupported_format": 1}
    assert report["rows"] == 1


# -- captions ---

ODD = [
    (b"tab\there and there", "tab here and there"),
    (b'a "quoted disc', 'a "quoted disc'),
    (b"nul \x00 inside", "nul inside"),
    (b"\xef\xbb\xbfbom inside", "bom inside"),
    ("🐈 a cat".encode(), "🐈 a cat"),
    ("قطة صغيرة".encode(), "قطة صغيرة"),
    (b"R&amp;D &lt;b&gt;bold&lt;/b&gt;", "R&D bold"),
    (b"x" * 10**6, None),
    (b"", None),
    (b"   ", None),
    (b"IMG_0001.jpg", None),
    (b"last one", "last one"),
]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_odd_captions_are_kept_cleaned_or_counted_and_no_neighbour_is_lost(ending, final, tmp_path, prepare):
    put(tmp_path, *(f"{number}.png" for number in range(len(ODD))))
    lines = [b"file\tcaption", *(f"{number}.png\t".encode() + text for number, (text, _) in enumerate(ODD))]
    (tmp_path / "odd.tsv").write_bytes(ending.join(lines) + (ending if final else b""))
    status, report, _ = prepare("captions", "odd.tsv")
    assert status == 0
    assert report["rejected"] == {"bad_line": 1, "bad_text": 1, "no_text": 2}
    table = open_corpus(tmp_path / "corpus").table("train", "captions")
    stored = {table.read(row).key: table.read(row).texts[0] for row in range(len(table))}
    assert stored == {f"odd:{number}.png": text for number, (_, text) in enumerate(ODD) if text}


FORMS = {
    "header.tsv": "file\tcaption\n0.png\tcat one\n1.png\tcat, two\n",
    "none.tsv": "0.png\tcat one\n1.png\tcat, two\n",
    "swapped.tsv": "cat one\t0.png\ncat, two\t1.png\n",
    "named.csv": 'caption,image\ncat one,0.png\n"cat, two",1.png\n',
    "unquoted.csv": "image,caption\n0.png,cat one\n1.png,cat, two\n",
    "trailing.csv": 'image,caption\n0.png,cat one,\n1.png,"cat, two",,\n',
    "german.csv": "image;caption\n0.png;cat one\n1.png;cat, two\n",
    "bom.csv": '\ufeffimage,caption\r\n0.png,cat one\r\n1.png,"cat, two"',
    "twice.csv": 'image,caption,caption\n0.png,cat one,no\n1.png,"cat, two",no\n',
    "paths.jsonl": '{"image": "0.png", "caption": ["cat one", null]}\n{"image": "1.png", "caption": "cat, two"}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_list_gives_the_same_captions(name, tmp_path, prepare):
    put(tmp_path, "0.png", "1.png")
    (tmp_path / name).write_bytes(FORMS[name].encode())
    assert prepare("captions", name)[0] == 0
    table = open_corpus(tmp_path / "corpus").table("train", "captions")
    assert sorted(table.read(row).texts for row in range(2)) == [("cat one",), ("cat, two",)]


def test_paths_of_windows_with_blanks_and_letters_are_found(tmp_path, prepare):
    put(tmp_path, "a b/ü 1.png", "c/d/2.png")
    (tmp_path / "w.csv").write_text("image,caption\na b\\ü 1.png,cat one\nc\\d\\2.png,cat two\n", encoding="utf-8")
    assert prepare("captions", "w.csv")[1]["rows"] == 2


@pytest.mark.parametrize(
    ("name", "content", "options", "message", "hint"),
    [
        ("e.csv", b"", "", "e.csv: the list is empty", None),
        ("e.jsonl", b"", "", "e.jsonl: the list is empty", "one JSON object per line"),
        ("h.tsv", b"file\tcaption\n", "", "h.tsv: no rows", "add ?header=false"),
        ("c.csv", b"image,one,two\n0.png,a,b\n", "", "no caption column (columns: image, one, two)", "?caption=COLUMN"),
        ("c.csv", b"image,caption\n0.png,x y\n", "?caption=wrods", "no column 'wrods'", "choose from: image, caption"),
        (
            "c.csv",
            b"image,caption\n0.png,x y\n",
            "?captoin=x",
            "did you mean 'caption'?",
            "options of table: audio, caption, ",
        ),
        ("o.csv", b"one\ntwo\n", "", "no caption column (columns: 0)", "o.csv?sep=tab"),
        ("u.csv", "image,caption\n0.png,x y\n".encode("utf-16"), "", "encoded as UTF-16", "save it as UTF-8"),
        ("m.tsv", b"file\tcaption\r0.png\tx y\r", "", "its lines end in CR alone", "LF"),
        ("q.csv", b'image,caption\n0.png,"x\n1.png,y\n', "", "line 2: the list ends inside quotes", "close the quote"),
        (
            "w.csv",
            b"image,caption\nx y,0.png\nz,1.png\n",
            "",
            "column 'image' holds texts",
            "?image=caption&caption=image",
        ),
        (
            "n.csv",
            b"image,caption\nx/0.png,x y\n",
            "",
            "its images do not exist, for example ",
            "relative to the list",
        ),
        (
            "b.tsv",
            b"file\tcaption\n0.png\tx y\nz\n",
            "",
            "1 of 2 lines cannot be read; line 3: 1 of 2 columns",
            "check the separator",
        ),
        ("l.csv", b"image,caption,by\n0.png,a,b,c\n", "", "line 2: 4 cells for 3 columns", "check the separator"),
        ("j.jsonl", b'{"image":"0.png","caption":"x y"}\n{oops\n', "", "line 2: not JSON", "check"),
        ("j.jsonl", b"[1, 2]\n", "", "j.jsonl: item 1: not a JSON object", "one JSON object per line"),
        (
            "k.jsonl",
            b'{"image":{"a":1},"caption":"x y"}\n',
            "",
            "line 1: image holds an object (keys: a)",
            "?image=image.a",
        ),
        (
            "k.jsonl",
            b'{"image":"0.png","caption":{"a":1}}\n',
            "",
            "line 1: caption holds an object (keys: a)",
            "?caption=caption.a",
        ),
        (
            "r.jsonl",
            b'{"image":' + b"[" * 100_000 + b"\n",
            "",
            "line 1: not JSON: nested more than 64 levels deep",
            "one JSON object",
        ),
        ("i.csv", b"image,caption\n.,x y\n", "", "no usable rows (rejected: read_error 1)", "rejects"),
        ("t.csv", b"image,caption\n0.png,12\n", "", "no usable rows (rejected: bad_text 1)", "rejects"),
        ("s.csv", b"image,caption,split\n0.png,x y,../up\n", "", "split name '../up' cannot be a folder name", None),
        ("p.parquet", b"PAR1garbagePAR1", "", "p.parquet: not a readable Parquet file", None),
    ],
)
def test_a_broken_caption_list_is_one_line_with_its_place(name, content, options, message, hint, tmp_path, prepare):
    put(tmp_path, "0.png", "1.png")
    (tmp_path / name).write_bytes(content)
    status, report, err = prepare("captions", f"{name}{options}")
    assert (status, report) == (2, None)
    assert message in err
    assert hint is None or hint in err.partition("hint: ")[2]
    assert not (tmp_path / "corpus" / "manifest.json").exists()


@pytest.mark.parametrize("bad", [1, 2])
def test_few_bad_lines_are_counted_and_more_than_five_in_a_hundred_abort(bad, tmp_path, prepare):
    put(tmp_path, *(f"{number}.png" for number in range(30)))
    good = "".join(f"{number}.png\tcat one\n" for number in range(30))
    (tmp_path / "b.tsv").write_text("file\tcaption\n" + good + "lonely\n" * bad)
    status, report, err = prepare("captions", "b.tsv", "--workers", "1")
    if bad == 1:
        assert (status, report["rows"], report["rejected"]) == (0, 30, {"bad_line": 1})
        assert [(row["key"], row["detail"]) for row in rejects(tmp_path)] == [("b:line 32", "line 32: 1 of 2 columns")]
    else:
        assert status == 2
        assert "2 of 32 lines cannot be read; line 32: 1 of 2 columns" in err


# -- labels ---


@pytest.mark.parametrize(
    ("label", "names", "message", "hint"),
    [
        (
            "2",
            "cat\ndog\n",
            "line 3: unknown label 2",
            "use a number or name from the list of classes (cat, dog), or -1 for no label",
        ),
        ("fox", "cat\ndog\n", "line 3: unknown label fox", "from the list of classes"),
        ("-2", "cat\ndog\n", "line 3: label -2 is negative", "use -1 only, which means no label"),
        ("1.5", "cat\ndog\n", "line 3: label 1.5 is not an integer", None),
        ("1.5", None, "line 3: label 1.5 is not an integer", "class names or whole numbers"),
        ("1", "cat\ncat\n", "duplicate class 'cat'", "a class has one number"),
        ("1", "\n\n", "names.txt: no class names", "write a name on each line"),
        ("1", "\udcff", "names.txt: cannot be read", "UTF-8 text"),
        ("1", False, "names.txt: no such file of class names", None),
    ],
)
def test_a_label_or_list_of_classes_that_does_not_fit_is_named(label, names, message, hint, tmp_path, prepare):
    put(tmp_path, "0.png", "1.png")
    (tmp_path / "l.csv").write_text(f"image,label\n0.png,{'cat' if label == 'fox' else 0}\n1.png,{label}\n")
    if names:
        (tmp_path / "names.txt").write_text(names, encoding="utf-8", errors="surrogateescape")
    status, _, err = prepare("labels", "l.csv" if names is None else "l.csv?classes=names.txt")
    assert status == 2
    assert message in err
    assert hint is None or hint in err


def test_one_class_under_two_ids_is_reported(tmp_path, prepare):
    data = put(tmp_path / "data", "sea_lion/1.png", "Sea Lion/2.png", "cat/3.png")
    status, report, err = prepare("labels", data)
    assert (status, report["classes"]) == (0, 3)
    said = "1 name is shared by several classes, so their prompts are equal: 'Sea Lion': Sea Lion, sea_lion"
    assert said in err


def test_labels_that_pandas_left_empty_are_no_class(tmp_path, prepare):
    put(tmp_path, "0.png", "1.png", "2.png")
    columns = {"image": ["0.png", "1.png", "2.png"], "label": ["cat", None, "dog"]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    status, report, _ = prepare("labels", "l.parquet")
    assert (status, report["classes"], report["rejected"]) == (0, 2, {"no_label": 1})


@pytest.mark.parametrize(
    ("src", "message", "hint"),
    [
        ("digits?foo=1", "digits?foo=1: foo: unknown key", "options of digits: classes, coloured, limit, named"),
        ("digits?limit=many", "limit: should be a valid integer", "options of digits"),
        ("digits?limit", "option 'limit' has no value", "?key=value&key=value"),
        ("digits?limit=4&seed=1&limit=5", "option 'limit' is given twice", "write limit= once"),
        ("cifar10", "no --data-dir given", "unicl prepare --labels cifar10 --data-dir DIR"),
        ("cc3m", "gcc3m: no labels", "use it with --captions gcc3m"),
        ("pets", "pets: the folder wds_vtab-pets: not found (no --data-dir given)", "clip-benchmark/wds_vtab-pets"),
        ("https://x.org/a.tar", "a URL cannot be a source", "download it first"),
        ("digitz", "did you mean 'digits'?", "choose a name: unicl prepare --list"),
    ],
)
def test_a_named_source_that_is_misspelled_or_missing_says_what_there_is(src, message, hint, refused):
    error, advice = refused("labels", src)
    assert message in error
    assert hint in advice


def test_a_name_of_the_catalogue_is_looked_for_in_the_data_dirs(tmp_path, prepare, monkeypatch):
    put(tmp_path / "d" / "food101", "pie/1.png", "soup/1.png")
    put(tmp_path / "e" / "flags", "red/1.png")
    status, report, _ = prepare("labels", "food101", "--data-dir", str(tmp_path / "d"))
    assert (status, report["classes"]) == (0, 2)
    monkeypatch.setenv("UNICL_DATA", os.pathsep.join((str(tmp_path / "d"), str(tmp_path / "e"))))
    status, report, err = prepare("labels", "flags", "-o", "second")
    assert (status, report["classes"]) == (0, 1), err
    status, _, err = prepare("labels", "pets", "--data-dir", str(tmp_path / "none"))
    assert status == 2
    assert "none: no such directory" in err


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(st.sampled_from('0.png\t,"\n\r;x{}[]:\\\x00'), max_size=120).map(str.encode),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]),
    kind=st.sampled_from(["labels", "captions", "images"]),
)
def test_any_bytes_as_a_list_give_a_corpus_or_one_line(content, suffix, kind, tmp_path, prepare):
    put(tmp_path, "0.png")
    list_path = tmp_path / f"fuzz{suffix}"
    list_path.write_bytes(content)
    status, _, err = prepare(kind, list_path, "-o", str(tmp_path / f"out-{abs(hash((content, suffix, kind)))}"))
    assert status in (0, 2)
    assert status == 0 or err.count("error: ") == 1
