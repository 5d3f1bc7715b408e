"""Data sets by name through the real command: official layouts and a loopback server, and how a corpus is called."""

import gzip
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from image_server import ImageServer, draw_png
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.manifest import read_manifest
from unicl_cli.data.wordnet import synsets

TENCH, GOLDFISH = "n01440764", "n01443537"


@pytest.fixture
def data(in_this_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of `--data-dir`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNICL_DATA", "")
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def write_tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def draw_jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 36), (level, 60, 90)).save(out, "JPEG")
    return out.getvalue()


def write_imagenet(folder: Path) -> None:
    parts = {
        f"{key}.tar": write_tar({f"{key}_{n}.JPEG": draw_jpeg(40 * place + n) for n in range(5)})
        for place, key in enumerate((TENCH, GOLDFISH))
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(write_tar(parts))


def write_gcc(folder: Path, server: ImageServer, kinds: list[str]) -> None:
    lines = [f'a "{kind} dog number {n}\t{server.url(kind, n)}\n' for n, kind in enumerate(kinds)]
    (folder / "Train_GCC-training.tsv").write_text("".join(lines), encoding="utf-8")
    val = f"a cat\t{server.url('ok', 900)}\n"
    (folder / "Validation_GCC-1.1.0-Validation.tsv").write_text(val, encoding="utf-8")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict, str]:
    assert main([*words, "--json"]) == 0
    found = capsys.readouterr()
    return json.loads(found.out), found.err


def test_imagenet_and_gcc3m_make_one_corpus_that_tells_how_many_urls_survived(server, data, capsys):
    write_imagenet(data)
    write_gcc(data, server, [*["ok"] * 6, "404", "html", "503", "once"])
    words = ("prepare", "--labels", "imagenet", "--captions", "cc3m", "--data-dir", "data", "--allow-private")
    report, told = run(capsys, *words, "--holdout", "0", "-o", "c")
    lines = {(line["source"], line["split"]): line["rows"] for line in report["sources"]}
    assert lines == {("imagenet", "train"): 10, ("cc3m", "train"): 7, ("cc3m", "val"): 1}
    assert report["survival"] == {"cc3m": {"listed": 11, "kept": 8}}
    assert "imagenet train: has 10 rows; the published data set has 1,281,167" in told
    assert "gcc3m train: has 10 rows; the published data set has about 3,320,000" in told
    corpus = open_corpus(data.parent / "c")
    assert [c.key for c in corpus.classes] == list(synsets())
    table = corpus.table("train", "captions")
    rows = [table.read(row) for row in range(len(table))]
    assert {row.texts[0]: row.image for row in rows} == {
        f'a "{kind} dog number {n}': draw_png(n) for n, kind in [*((n, "ok") for n in range(6)), (9, "once")]
    }
    assert {row.key.rpartition("/")[0] for row in rows} == {"cc3m:train"}
    assert corpus.name == "c (8 of 11 listed images)", "the name that eval, compare and pages show"
    assert main(["prepare", "--verify", "-o", "c"]) == 0
    capsys.readouterr()
    document, _ = run(capsys, "inspect", "c")
    assert (document["name"], document["survival"]) == (corpus.name, report["survival"])
    assert main(["inspect", "c"]) == 0
    assert "c (8 of 11 listed images): 18 rows" in " ".join(capsys.readouterr().out.split())
    asked = dict(server.asked)
    assert run(capsys, *words, "--holdout", "0", "-o", "c")[0] == report
    assert dict(server.asked) == asked, "nothing is asked again"
    server.is_well = True
    report, _ = run(capsys, *words, "--holdout", "0", "-o", "c", "--retry-failed")
    assert report["survival"] == {"cc3m": {"listed": 11, "kept": 9}}
    assert open_corpus(data.parent / "c").name == "c (9 of 11 listed images)"


def test_a_corpus_of_files_keeps_its_bare_name(data, capsys):
    write_imagenet(data)
    report, _ = run(capsys, "prepare", "--labels", "imagenet", "--data-dir", "data", "-o", "files")
    assert "survival" not in report
    assert read_manifest(data.parent / "files")[0].title == "files"
    assert "survival" not in json.loads((data.parent / "files" / "manifest.json").read_text())


def test_gcc15m_is_both_lists_with_a_count_for_each(server, data, capsys):
    write_gcc(data, server, ["ok", "404"])
    lines = [f"{server.url(kind, 50 + n)}\ta bird\n" for n, kind in enumerate(("ok", "ok", "404"))]
    (data / "cc12m.tsv").write_text("".join(lines), encoding="utf-8")
    words = ("--captions", "gcc15m", "--data-dir", "data", "--allow-private", "--holdout", "0", "-o", "both")
    report, _ = run(capsys, "prepare", *words)
    assert report["survival"] == {"gcc3m": {"listed": 3, "kept": 2}, "gcc12m": {"listed": 3, "kept": 2}}
    assert main(["prepare", *words]) == 0
    out = capsys.readouterr().out
    assert "gcc3m: 2 of 3 listed images" in out
    assert "gcc12m: 2 of 3 listed images" in out
    assert open_corpus(data.parent / "both").name == "both (4 of 6 listed images)"


GCC3M = "Train_GCC-training.tsv"


@pytest.mark.parametrize(
    ("there", "words", "missing"),
    [
        ((), "--captions gcc15m", {"gcc3m": GCC3M, "gcc12m": "cc12m.tsv"}),
        ((GCC3M,), "--captions gcc15m", {"gcc12m": "cc12m.tsv"}),
        (("cc12m.tsv",), "--captions cc15m?encoding=utf-8", {"gcc3m": GCC3M}),
        ((), "--labels imagenet --captions gcc12m", {"imagenet": "ILSVRC2012_img_train.tar", "gcc12m": "cc12m.tsv"}),
        ((), "--labels digits --captions gcc12m?path=data", {"gcc12m": "cc12m.tsv"}),
    ],
)
def test_all_missing_files_are_told_at_once_with_the_command_for_all_sources(data, capsys, there, words, missing):
    """Of data sets that stand for several, of several sources, and of those of which one is there."""
    for name in there:
        (data / name).write_text("one\ttwo\n", encoding="utf-8")
    assert main(["prepare", *words.split(), "--data-dir", "data", "-o", "c"]) == 2
    told, _, hint = capsys.readouterr().err.partition("  hint: ")
    assert len(told.splitlines()) == len(missing)
    place = str(data.resolve())
    for name, file in missing.items():
        assert f"{name}: {file}" in told
        assert file in hint
    assert hint.count(f" into {place}") == len(missing)
    command = " ".join(map(shlex.quote, words.removesuffix("?path=data").split()))
    assert hint.rstrip().endswith(f", then run: unicl prepare {command} --data-dir {place}")


def test_without_a_data_dir_a_missing_file_names_a_place_for_it(data, capsys):
    assert main(["prepare", "--captions", "gcc15m", "-o", "c"]) == 2
    hint = capsys.readouterr().err.partition("  hint: ")[2]
    assert hint.count(" into a directory DIR") == 2
    assert hint.rstrip().endswith("then run: unicl prepare --captions gcc15m --data-dir DIR")


def test_a_data_set_that_the_hub_does_not_give_is_told_with_the_command_for_all_sources(data, server):
    write_gcc(data, server, ["ok"])
    words = ("prepare", "--captions", "gcc3m", "--labels", "cifar10", "--data-dir", "data", "-o", "c")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "unicl_cli", *words], capture_output=True, text=True, check=False, env=environment
    )
    told, _, hint = done.stderr.partition("  hint: ")
    assert told.startswith("error: cifar10: ")
    assert "cannot be fetched from the hub" in told
    assert hint.rstrip().endswith(f"unicl prepare --labels cifar10 --captions gcc3m --data-dir {data.resolve()}")


def test_sbu_comes_from_its_archive(server, data, capsys):
    urls = "".join(f"{server.url('ok', n)}\n" for n in range(3)).encode()
    members = {"dataset/SBU_captioned_photo_dataset_urls.txt": urls}
    members |= {"dataset/SBU_captioned_photo_dataset_captions.txt": b"one dog\ntwo dogs\nthree dogs\n"}
    (data / "SBUCaptionedPhotoDataset.tar.gz").write_bytes(gzip.compress(write_tar(members)))
    words = ("--captions", "sbu?verify=false", "--data-dir", "data", "--allow-private", "--holdout", "0", "-o", "s")
    report, _ = run(capsys, "prepare", *words)
    assert report["rows"] == 3
    table = open_corpus(data.parent / "s").table("train", "captions")
    assert {row.texts[0]: row.image for row in map(table.read, range(3))} == {
        "one dog": draw_png(0),
        "two dogs": draw_png(1),
        "three dogs": draw_png(2),
    }


def test_a_missing_data_set_is_told_before_the_libraries_are_loaded(data: Path) -> None:
    code = (
        "import sys\nfrom unicl_cli.cli import main\n"
        "try:\n    main(['prepare', '--labels', 'imagenet', '-o', 'c'])\n"
        "finally:\n    print([name for name in ('pyarrow', 'torch', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=data, capture_output=True, text=True, check=False)
    assert "ILSVRC2012_img_train.tar" in done.stderr
    assert done.stdout == "[]\n"
