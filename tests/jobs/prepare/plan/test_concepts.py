"""`prepare --query-list`, `--max-per-query` and `--balance`: the rows that stay, by hash, and what is refused."""

import io
import json

import pytest
from PIL import Image
from toys import prepared, put, rows_of

from unicl_cli.cli import main

CAPTIONS = ["a red dog", "the DOG sleeps", "hot dogs", "a cat and a dog", "one cat", "nothing here", "hot-dog stand"]


def picture(seed):
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (seed, 7, 7)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def captions(tmp_path):
    lines = ["image,caption", *(f"{n}.png,{text}" for n, text in enumerate(CAPTIONS))]
    return put(tmp_path / "web", {f"{n}.png": picture(n) for n in range(7)} | {"cap.csv": "\n".join(lines).encode()})


def kept(capsys, captions, tmp_path, name, *options):
    """The captions of the corpus, and its notes."""
    report, _ = prepared(capsys, "--captions", captions / "cap.csv", *options, "-o", tmp_path / name)
    return {sample.texts[0] for sample in rows_of(tmp_path / name, kind="captions").values()}, report["notes"]


def test_a_caption_stays_if_it_contains_a_query_as_whole_words(captions, tmp_path, capsys):
    queries = put(tmp_path / "q", {"q.txt": b"Dog\nhot dog\n\n!!\ndog\n"}) / "q.txt"
    found, notes = kept(capsys, captions, tmp_path, "c", "--query-list", queries)
    assert found == {"a red dog", "the DOG sleeps", "a cat and a dog", "hot-dog stand"}
    assert "cap: kept 4 of 7 training rows by --query-list (2 queries found)" in notes
    assert "q.txt: queries without a letter or digit are ignored: 1" in notes
    assert "q.txt: queries that repeat an earlier one: 1" in notes


def test_a_query_takes_n_rows_and_a_larger_n_the_same_and_more(captions, tmp_path, capsys):
    queries = put(tmp_path / "q", {"q.txt": b"dog\ncat"}) / "q.txt"
    sets = [
        kept(capsys, captions, tmp_path, f"c{n}", "--query-list", queries, "--max-per-query", n)[0] for n in (1, 2, 3)
    ]
    assert sets[0] < sets[1] <= sets[2]
    assert all(sum("cat" in text for text in found) >= min(n, 2) for n, found in enumerate(sets, 1))
    assert all(len(found) <= 2 * n for n, found in enumerate(sets, 1))
    lines = (captions / "cap.csv").read_text().split("\n")
    (captions / "cap.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    other, notes = kept(capsys, captions, tmp_path, "r", "--query-list", queries, "--max-per-query", 2)
    assert other == sets[1], "the order of the lines changes nothing"
    said = (
        f"cap: kept {len(other)} of 7 training rows by --query-list (2 queries found, of which 1 had more than 2 rows)"
    )
    assert said in notes


def test_another_list_or_number_is_another_plan(captions, tmp_path, capsys):
    queries = put(tmp_path / "q", {"q.txt": b"dog\ncat", "same.txt": b"Cat\n\ndog\n", "other.txt": b"dog"})
    command = ["prepare", "--captions", str(captions / "cap.csv"), "-o", str(tmp_path / "c"), "--query-list"]
    assert main([*command, str(queries / "q.txt")]) == 0
    assert main([*command, str(queries / "same.txt")]) == 0
    for options, said in (
        ([str(queries / "other.txt")], f"the queries of {queries / 'other.txt'} differ"),
        ([str(queries / "q.txt"), "--max-per-query", "3"], "max-per-query: None -> 3"),
    ):
        capsys.readouterr()
        assert main([*command, *options]) == 2
        assert said in capsys.readouterr().err
    assert main([*command[:-1]]) == 2
    assert f"query-list: {queries / 'q.txt'} -> None" in capsys.readouterr().err
    shard = next((tmp_path / "c/data").rglob("*.parquet"))
    before = shard.read_bytes()
    shard.write_bytes(b"?" * len(before))
    assert main(["prepare", "--repair", "-o", str(tmp_path / "c")]) == 0
    assert shard.read_bytes() == before


def test_balance_limits_the_rows_of_a_class_and_the_captions_that_name_it(captions, tmp_path, capsys):
    labels = put(tmp_path / "pets", {f"{name}/{n}.png": picture(50 + n) for name in ("dog", "cat") for n in range(4)})
    out = tmp_path / "c"
    arguments = ("--labels", labels, "--captions", captions / "cap.csv", "--balance", 2, "-o", out)
    report, _ = prepared(capsys, *arguments)
    assert sorted(sample.label for sample in rows_of(out).values()) == [0, 0, 1, 1]
    texts = {sample.texts[0] for sample in rows_of(out, kind="captions").values()}
    assert "nothing here" in texts, "a caption that names no class stays"
    assert {"one cat", "a cat and a dog"} <= texts, "both captions with a cat"
    assert len(texts) <= 5
    assert (
        "pets: kept 4 of 8 training rows by --balance (2 classes found, of which 2 had more than 2 rows)"
        in report["notes"]
    )
    assert json.loads((out / "plan.json").read_text())["balance"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-per-query", "3"], "--max-per-query: needs --query-list"),
        (["--balance", "3"], "--balance: no source has classes"),
        (["--query-list", "none.txt"], "none.txt: cannot be read"),
        (["--query-list", "blank.txt"], "blank.txt: no queries"),
        (["--query-list", "bytes.txt"], "line 1, byte 2 (0xff): not UTF-8\n  hint: save it as UTF-8\n"),
        (["--query-list", "zebra.txt"], "no caption of its 7 training rows contains a query"),
    ],
)
def test_options_with_nothing_to_do_are_refused(captions, tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(put(tmp_path / "q", {"blank.txt": b"\n--\n", "zebra.txt": b"zebra", "bytes.txt": b"a\xff"}))
    assert main(["prepare", "--captions", str(captions / "cap.csv"), "-o", str(tmp_path / "c"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "c" / "plan.json").exists()


def test_evaluation_splits_keep_all_their_rows(captions, tmp_path, capsys):
    lines = [
        "image,caption,split",
        *(f"{n}.png,{text},{'test' if n > 3 else 'train'}" for n, text in enumerate(CAPTIONS)),
    ]
    (captions / "cap.csv").write_text("\n".join(lines))
    queries = put(tmp_path / "q", {"q.txt": b"red dog"}) / "q.txt"
    report, _ = prepared(capsys, "--captions", captions / "cap.csv", "--query-list", queries, "-o", tmp_path / "c")
    assert {line["split"]: line["rows"] for line in report["sources"]} == {"train": 1, "test": 3}
