"""`unicl prepare` through the real command: what goes in, what is left out and why, and what it refuses."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from forking import complete
from PIL import Image
from toys import prepared, put, rows_of

from unicl_cli import registry
from unicl_cli.cli import main
from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.sources.resolve import KINDS
from unicl_cli.errors import UniclError


def picture(mode="RGB", kind="PNG", size=(24, 20), seed=0, **options):
    out = io.BytesIO()
    pixels = random.Random(seed).randbytes(size[0] * size[1] * 4)
    image = Image.frombytes("RGBA", size, pixels).convert(mode)
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def odd(tmp_path):
    """Two classes of every kind of image, with some that are none."""
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = io.BytesIO()
    Image.frombytes("I;16", (9, 7), bytes(range(126))).save(deep, "PNG")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    jpeg = picture(kind="JPEG", size=(120, 100))
    return put(
        tmp_path / "odd ones",
        {
            "sea & sand/rgba.png": picture("RGBA"),
            "sea & sand/palette.gif": picture("P", "GIF"),
            "sea & sand/cmyk.jpg": picture("CMYK", "JPEG"),
            "sea & sand/deep.png": deep.getvalue(),
            "sea & sand/turned.JPEG": picture(kind="JPEG", size=(30, 20), exif=exif),
            "sea & sand/cut.jpg": jpeg[: len(jpeg) // 2],
            "sea & sand/page.jpg": b"<html>404</html>",
            "sea & sand/none.png": b"",
            "sea & sand/notes.txt": b"not an image",
            "sea & sand/.DS_Store": b"x",
            "Straße/dance.gif": gif.getvalue(),
            "one picture/1.png": picture(),
            "empty/.keep": b"",
            "loose.png": picture(),
        },
    )


def test_odd_pictures_are_kept_and_broken_ones_left_out_with_their_reason(odd, tmp_path, capsys):
    report, err = prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    (line,) = report["sources"]
    assert line["rows"] == 7
    assert line["rejected"] == {"empty": 1, "no_label": 1, "not_image": 1, "truncated": 1}
    assert (line["animated"], line["classes"], report["classes"]) == (1, 3, 3)
    assert "folders without images are not classes (1): empty" in err
    rejects = [json.loads(text) for f in (tmp_path / "c/rejects").iterdir() for text in f.read_text().splitlines()]
    assert {(Path(r["ref"]).name, r["reason"]) for r in rejects} == {
        ("none.png", "empty"),
        ("loose.png", "no_label"),
        ("page.jpg", "not_image"),
        ("cut.jpg", "truncated"),
    }
    kept = rows_of(tmp_path / "c")
    assert kept["odd-ones:sea & sand/rgba.png"].image == (odd / "sea & sand/rgba.png").read_bytes()
    (file,) = (tmp_path / "c/data/train").iterdir()
    sizes = {r["key"]: (r["width"], r["height"]) for r in pq.read_table(file).to_pylist()}
    assert sizes["odd-ones:sea & sand/turned.JPEG"] == (20, 30)
    assert [c.names for c in open_corpus(tmp_path / "c").classes] == [("Straße",), ("one picture",), ("sea & sand",)]


def test_labels_captions_and_pictures_alone_come_into_one_corpus(tmp_path, capsys):
    put(tmp_path / "pets", {f"{name}/{n}.png": picture(seed=n) for name in ("cat", "dog") for n in range(3)})
    put(tmp_path, {f"web/{n}.png": picture(seed=n) for n in range(4)})
    (tmp_path / "cap.tsv").write_text(
        "".join(f"web/{n}.png\ta <b>big</b> &amp; red thing {n}\n" for n in range(3)) + "web/3.png\tIMG_0031.jpg\n"
    )
    report, _ = prepared(
        capsys, "--labels", tmp_path / "pets", "--captions", tmp_path / "cap.tsv", "--images", tmp_path / "web",
        "-o", tmp_path / "c",
    )  # fmt: skip
    assert [(s["source"], s["kind"], s["rows"], s["rejected"]) for s in report["sources"]] == [
        ("pets", "labels", 6, {}),
        ("cap", "captions", 3, {"bad_text": 1}),
        ("web", "images", 4, {}),
    ]
    corpus = open_corpus(tmp_path / "c")
    assert corpus.kinds("train") == ("labels", "captions", "images")
    captioned = rows_of(tmp_path / "c", kind="captions")["cap:web/1.png"]
    assert (captioned.texts, captioned.label) == (("a big & red thing 1",), NO_LABEL)
    assert {(s.texts, s.label) for s in rows_of(tmp_path / "c", kind="images").values()} == {((), NO_LABEL)}
    assert {s.label for s in rows_of(tmp_path / "c").values()} == {0, 1}


def test_captions_never_keep_a_label_and_labels_keep_their_captions(tmp_path, capsys):
    put(tmp_path, {"a.png": picture(), "b.png": picture()})
    (tmp_path / "l.csv").write_text("file,label,caption\na.png,cat,a sleepy animal\nb.png,dog,\n")
    prepared(capsys, "--labels", tmp_path / "l.csv", "--captions", tmp_path / "l.csv", "-o", tmp_path / "c")
    labelled = rows_of(tmp_path / "c")
    assert [(s.label, s.texts) for _, s in sorted(labelled.items())] == [(0, ("a sleepy animal",)), (1, ())]
    captioned = rows_of(tmp_path / "c", kind="captions")
    assert [(s.key, s.label) for s in captioned.values()] == [("l-2:a.png", NO_LABEL)]


def test_sixty_classes_of_odd_names_survive(tmp_path, capsys):
    names = [f"class & {n} - größe (a_b)" for n in range(62)]
    put(
        tmp_path / "many", {f"{name}/{n}.png": picture(seed=n) for name in names for n in range(1 + (name != names[5]))}
    )
    report, _ = prepared(capsys, "--labels", tmp_path / "many", "-o", tmp_path / "c")
    assert (report["classes"], report["rows"]) == (62, 123)
    corpus = open_corpus(tmp_path / "c")
    assert {c.key for c in corpus.classes} == set(names)
    assert sum(corpus.manifest.class_counts["train"]) == 123


def test_a_source_with_train_only_gives_a_share_to_validation_and_says_so(tmp_path, capsys):
    put(
        tmp_path / "f",
        {f"{n % 3}/{n}.png": picture(size=(8, 8), seed=n) for n in range(240)} | {"single/1.png": picture()},
    )
    report, err = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c")
    held = {s["split"]: s["rows"] for s in report["sources"]}
    assert held["train"] + held["val"] == 241
    assert 3 <= held["val"] <= 25
    assert f"{held['val']} of 241 rows to 'val'" in err
    assert "f:single/1.png" in rows_of(tmp_path / "c")
    report, err = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "d", "--holdout", 0)
    assert ([s["split"] for s in report["sources"]], "val" in err) == (["train"], False)


def test_the_last_picture_of_a_class_is_never_held_out(tmp_path, capsys):
    put(tmp_path / "f", {f"{n}/{k}.png": picture(seed=2 * n + k) for n in range(20) for k in range(1 + n % 2)})
    prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c", "--holdout", 0.9)
    counts = open_corpus(tmp_path / "c").manifest.class_counts
    assert min(counts["train"]) == 1
    assert sum(counts["val"]) > 3


def test_classes_merge_by_key_and_equal_prompt_names_are_reported(tmp_path, capsys):
    put(tmp_path / "a", {"cat/1.png": picture(), "bird/crane/1.png": picture()})
    put(tmp_path / "b", {"dog/1.png": picture(), "cat/2.png": picture(), "tool/crane/1.png": picture()})
    _, err = prepared(capsys, "--labels", tmp_path / "a", "--labels", tmp_path / "b", "-o", tmp_path / "c")
    assert "b: 1 of its 3 classes are shared with earlier sources (same key)" in err
    assert "so their prompts are equal: 'crane'" in err
    rows = rows_of(tmp_path / "c")
    assert rows["a:cat/1.png"].label == rows["b:cat/2.png"].label
    assert open_corpus(tmp_path / "c").manifest.class_counts["train"] == [1, 2, 1, 1]


def test_size_shrinks_and_limit_cuts_and_templates_come_from_a_file(tmp_path, capsys):
    put(tmp_path / "f", {f"x/{n}.jpg": picture(kind="JPEG", size=(90, 60), seed=n) for n in range(9)})
    (tmp_path / "t.txt").write_text("a toy {}.\nthe {}\n")
    report, _ = prepared(
        capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c", "--size", 16, "--limit", 4,
        "--templates", tmp_path / "t.txt",
    )  # fmt: skip
    assert (report["rows"], report["sources"][0]["short_side"]) == (4, [16, 16])
    assert open_corpus(tmp_path / "c").templates == ("a toy {}.", "the {}")
    for sample in rows_of(tmp_path / "c").values():
        assert Image.open(io.BytesIO(sample.image)).size == (24, 16)


def test_raw_text_is_stored_as_it_came(tmp_path, capsys):
    put(tmp_path, {"a.png": picture()})
    (tmp_path / "c.tsv").write_text("file\tcaption\na.png\t  <b>x</b>  &amp;\n")
    prepared(capsys, "--captions", tmp_path / "c.tsv", "-o", tmp_path / "c", "--text", "raw")
    assert rows_of(tmp_path / "c", kind="captions")["c:a.png"].texts == ("  <b>x</b>  &amp;",)


def test_the_same_command_on_a_complete_corpus_says_so_and_writes_nothing(tmp_path, capsys):
    argv = ("--labels", "digits?classes=0-6&limit=60", "--captions", "digits?limit=30", "-o", tmp_path / "c")
    first, _ = prepared(capsys, *argv)
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / "c").rglob("*.*") if f.is_file()}
    again, err = prepared(capsys, *argv)
    assert "is complete: nothing to do" in err
    assert again == first
    assert before == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / "c").rglob("*.*") if f.is_file()}


def test_another_plan_in_the_same_directory_names_what_differs(odd, tmp_path, capsys):
    prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    _, err = prepared(capsys, "--labels", odd, "-o", tmp_path / "c", "--size", 16, code=2)
    assert "was started with another plan; size: null -> 16" in err
    put(odd, {"one picture/2.png": picture()})
    _, err = prepared(capsys, "--labels", odd, "-o", tmp_path / "c", code=2)
    assert "'odd-ones' (labels) has changed (number of rows and contents)" in err
    (odd / "one picture/2.png").unlink()
    put(odd, {"one picture/1.png": picture(size=(50, 50))})
    _, err = prepared(capsys, "--labels", odd, "-o", tmp_path / "c", code=2)
    assert "'odd-ones' (labels) has changed (contents)" in err


def test_other_library_versions_are_refused_only_while_work_is_open(odd, tmp_path, capsys):
    prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    plan = json.loads((tmp_path / "c/plan.json").read_text())
    plan["versions"]["pillow"] = "1.0"
    (tmp_path / "c/plan.json").write_text(json.dumps(plan))
    prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    (tmp_path / "c/manifest.json").unlink()
    _, err = prepared(capsys, "--labels", odd, "-o", tmp_path / "c", code=2)
    assert "started with other versions" in err
    prepared(capsys, "--labels", odd, "-o", tmp_path / "c", "--allow-version-mix")


def test_a_second_prepare_is_told_that_the_directory_is_in_use(tmp_path, capsys):
    (tmp_path / "c").mkdir()
    with FileLock(tmp_path / "c/.lock"):
        _, err = prepared(capsys, "--labels", "digits?limit=9", "-o", tmp_path / "c", code=2)
    assert f"{tmp_path / 'c'}: locked by another process" in err
    prepared(capsys, "--labels", "digits?limit=9", "-o", tmp_path / "c")


def test_a_directory_with_something_else_is_never_written_into(tmp_path, capsys):
    put(tmp_path / "mine", {"thesis.doc": b"x"})
    _, err = prepared(capsys, "--labels", "digits", "-o", tmp_path / "mine", code=2)
    assert "contains other files (thesis.doc)" in err
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.doc"]


def test_no_row_left_is_an_error_without_a_manifest_and_the_mended_source_can_follow(tmp_path, capsys):
    put(tmp_path / "f", {"cat/1.png": b"junk", "cat/2.png": b""})
    _, err = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c", code=2)
    assert "no usable rows (rejected: empty 1, not_image 1)" in err
    assert not (tmp_path / "c/manifest.json").exists()
    put(tmp_path / "f", {"cat/1.png": picture()})
    report, _ = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c")
    assert (report["rows"], report["rejected"]) == (1, {"empty": 1})


def test_missing_files_and_wrong_words_are_errors_of_one_line(tmp_path, capsys):
    for argv, message in (
        ((), "nothing to prepare"),
        (("--labels", "nowhere"), "nowhere: no such folder, list or source"),
        (("--labels", "digits", "--text", "pretty"), "--text: unknown value 'pretty'"),
        (("--labels", "digits", "--templates", "clip8"), "templates 'clip8': unknown; did you mean"),
        (("--labels", "digits", "--dedup", "nearly"), "--dedup: unknown value 'nearly'"),
        (("--labels", "digits", "--verify", "--repair"), "--retry-failed: cannot be combined"),
    ):
        _, err = prepared(capsys, *argv, "-o", tmp_path / "c", code=2)
        assert message in err
        assert "Traceback" not in err


def test_a_picture_that_is_not_there_is_counted(tmp_path, capsys):
    put(tmp_path, {"a.png": picture()})
    (tmp_path / "c.csv").write_text("file,caption\na.png,a thing\nb.png,another thing\n")
    report, _ = prepared(capsys, "--captions", tmp_path / "c.csv", "-o", tmp_path / "c")
    assert report["rejected"] == {"missing_file": 1}


def test_a_damaged_shard_is_made_again_with_the_same_bytes(odd, tmp_path, capsys):
    prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    (shard,) = (tmp_path / "c/data/train").iterdir()
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    _, err = prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    assert "shard has" in err
    assert shard.read_bytes() == whole
    shard.unlink()
    prepared(capsys, "--labels", odd, "-o", tmp_path / "c")
    assert shard.read_bytes() == whole


def test_the_table_on_stdout_tells_the_same_as_the_json(odd, tmp_path, capsys):
    assert main(["prepare", "--labels", str(odd), "-o", str(tmp_path / "c")]) == 0
    out = capsys.readouterr().out
    assert "odd-ones  labels  train  7" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("  ")] == [
        ["empty", "1"],
        ["no_label", "1"],
        ["not_image", "1"],
        ["truncated", "1"],
    ]
    assert "class 0: Straße (odd-ones:Straße/dance.gif)" in out
    assert "7 rows, 3 classes" in out


PLUGIN = """
import io
from unicl_cli.api import ClassName, Row

class Stripes:
    splits = ("train", "test")
    classes = (ClassName("s", ("stripe",)),)
    templates = ("a {}",)
    def __init__(self, kind, rows): self.kind, self.count = kind, rows
    def rows(self, split):
        return [Row(f"{split}{n}", str(n), ("a striped cloth",), 0) for n in range(self.count)]
    def read(self, row):
        if row.ref == "3": raise RuntimeError("no cloth")
        from PIL import Image
        out = io.BytesIO(); Image.new("RGB", (300, 300), (int(row.ref) % 256, 0, 0)).save(out, "BMP")
        return {"image": out.getvalue()}

def stripes(*, kind: str, rows: int = 5):
    return Stripes(kind, rows)

PARTS = {"datasets": {"stripes": stripes}}
"""


def test_a_plugin_source_cannot_break_the_rules_of_its_kind(tmp_path, capsys, monkeypatch):
    (tmp_path / "stripes.py").write_text(PLUGIN)
    monkeypatch.setenv("UNICL_PLUGINS", str(tmp_path / "stripes.py"))
    registry.forget()
    try:
        prepared(capsys, *(f"--{kind}=stripes" for kind in ("labels", "captions", "images")), "-o", tmp_path / "c")
    finally:
        monkeypatch.undo()
        registry.forget()
    kept = {kind: {(s.label, len(s.texts)) for s in rows_of(tmp_path / "c", kind=kind).values()} for kind in KINDS}
    assert kept == {"labels": {(0, 1)}, "captions": {(NO_LABEL, 1)}, "images": {(NO_LABEL, 0)}}


@pytest.mark.slow
def test_a_plugin_source_works_in_worker_processes(tmp_path):
    (tmp_path / "stripes.py").write_text(PLUGIN)
    argv = ["--plugin", tmp_path / "stripes.py", "prepare", "--captions", "stripes?rows=300", "-o", tmp_path / "c",
            "--shard-mb", "20", "--workers", "2", "--json"]  # fmt: skip
    done = complete([sys.executable, "-m", "unicl_cli", *map(str, argv)], check=True)
    report = json.loads(done.stdout)
    assert report["shards"] > 2
    assert report["rejected"] == {"read_error": 2}
    assert {s.label for s in rows_of(tmp_path / "c", kind="captions").values()} == {NO_LABEL}


@pytest.mark.slow
def test_the_datasets_library_reads_a_corpus_as_it_lies(tmp_path, capsys):
    prepared(capsys, "--labels", "shapes?count=30&test=6", "--captions", "shapes?count=20&test=5", "-o", tmp_path / "c")
    script = (
        "import sys; from datasets import load_dataset\n"
        "d = load_dataset('parquet', data_files=sys.argv[1] + '/data/train/*.parquet', "
        "cache_dir=sys.argv[1] + 'x')['train']\n"
        "assert len(d) == 50 and d[0]['image'].size == (32, 32) and d.features['label'].dtype == 'int32', d.features"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "c")], check=True)


def test_prepare_never_loads_torch(tmp_path):
    script = (
        "import sys; from unicl_cli.cli import main\n"
        "assert main(['prepare', '--labels', 'shapes?count=9&test=3', '-o', sys.argv[1], '--json']) == 0\n"
        "assert not {'torch', 'datasets', 'timm', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "c")], check=True, capture_output=True)


def test_rows_of_a_parquet_list_become_the_same_bytes(tmp_path, capsys):
    data = [picture(seed=n) for n in range(5)]
    pq.write_table(
        pa.table({"image": data, "caption": [f"thing number {n}" for n in range(5)]}), tmp_path / "p.parquet"
    )
    prepared(capsys, "--captions", tmp_path / "p.parquet", "-o", tmp_path / "c")
    assert {s.texts[0]: s.image for s in rows_of(tmp_path / "c", kind="captions").values()} == {
        f"thing number {n}": data[n] for n in range(5)
    }


@pytest.mark.parametrize("damage", ["[]", "{}", '{"rows'])
def test_the_same_command_makes_a_damaged_manifest_again(tmp_path, damage: str):
    out = tmp_path / "c"
    command = ["prepare", "--labels", "shapes?count=40&test=9", "-o", str(out), "--workers", "1", "-q"]
    assert main(command) == 0
    whole = json.loads((out / "manifest.json").read_bytes())
    (out / "manifest.json").write_text(damage, encoding="utf-8")
    with pytest.raises(UniclError, match=r"manifest\.json"):
        open_corpus(out)
    assert main(command) == 0
    assert json.loads((out / "manifest.json").read_bytes()) == whole


@pytest.mark.parametrize("split", [".", "..", "...", "a/b", "a\\b", "nul", "CON.x", "x" * 250, "é" * 120])
def test_a_split_that_cannot_be_a_folder_is_refused_and_nothing_is_written(tmp_path, capsys, split):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")
    (tmp_path / "l.csv").write_text(f"image,split,label\n1.png,{split},cat\n2.png,train,dog\n")
    before = sorted(tmp_path.rglob("*"))
    _, err = prepared(capsys, "--labels", tmp_path / "l.csv", "-o", tmp_path / "c" / "d", code=2)
    assert "cannot be a folder name" in err or "cannot be a file name" in err
    assert sorted(tmp_path.rglob("*")) == before
