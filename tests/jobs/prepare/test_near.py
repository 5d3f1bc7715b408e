"""`--dedup near` and `--not-in`: rows whose image is there already, exactly or nearly, are left out and counted."""

import json

import pytest
from PIL import Image
from scenes import CHANGES, change, draw_scene, encode
from toys import prepared, put, rows_of

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.prepare.shards import not_in


def rejects(corpus):
    return {
        line["key"]: line
        for file in (corpus / "rejects").iterdir()
        for line in map(json.loads, file.read_text().splitlines())
    }


@pytest.fixture
def photos(tmp_path):
    """Ten photos, a changed copy of five of them, an equal copy of one, and images of one colour."""
    for n in range(10):
        put(tmp_path / "f", {f"{n % 2}/{n}.png": encode(draw_scene(n))})
    for n, how in enumerate(CHANGES):
        put(tmp_path / "f", {f"{n % 2}/{n}-{how}.img": change(draw_scene(n), how)})
    put(tmp_path / "f", {"0/4-again.png": encode(draw_scene(4))})
    for n, colour in enumerate(["black", "white", (1, 1, 1)]):
        put(tmp_path / "f", {f"0/plain{n}.png": encode(Image.new("RGB", (40, 40), colour))})
    return tmp_path


def test_of_nearly_equal_images_the_first_of_the_plan_stays(photos, capsys):
    argv = ("--labels", photos / "f", "-o", photos / "c", "--dedup", "near", "--keep-order")
    report, err = prepared(capsys, *argv)
    assert report["rejected"] == {"duplicate": 1, "near_duplicate": 5}
    facts = report["dedup"]["near"]
    assert {name: facts[name] for name in ("groups", "rows", "equal", "flat", "crowded")} == {
        "groups": 5, "rows": 6, "equal": 1, "flat": 3, "crowded": 0
    }  # fmt: skip
    assert report["dedup"]["exact"] is None
    assert "left out 6 duplicate rows (1 the same byte for byte) of 5 images" in err
    kept = [key.partition("/")[2].partition(".")[0].partition("-")[0] for key in rows_of(photos / "c")]
    assert sorted(kept) == [*map(str, range(10)), "plain0", "plain1", "plain2"]
    for row in rejects(photos / "c").values():
        first = row["detail"].rpartition(" ")[2]
        assert first in rows_of(photos / "c")
        assert first.partition("/")[2][0] == row["key"].partition("/")[2][0]
        assert row["detail"].startswith("nearly" if row["reason"] == "near_duplicate" else "the same")
    again, err = prepared(capsys, *argv)
    assert again == report
    assert "is complete" in err
    assert main(["prepare", "--verify", "-o", str(photos / "c")]) == 0
    shard = photos / "c" / open_corpus(photos / "c").manifest.shards[0].file
    before = shard.read_bytes()
    shard.write_bytes(before[:-1])
    assert main(["prepare", "--repair", "-o", str(photos / "c")]) == 0
    assert shard.read_bytes() == before


def test_captions_of_near_duplicates_join_the_row_that_stays(tmp_path, capsys):
    put(
        tmp_path,
        {"a.png": encode(draw_scene(1)), "b.jpg": change(draw_scene(1), "jpeg"), "c.png": encode(draw_scene(2))},
    )
    (tmp_path / "x.csv").write_text("image,caption\na.png,a red door\nb.jpg,an old door\nc.png,a cat\nb.jpg,a gate\n")
    report, _ = prepared(
        capsys, "--captions", tmp_path / "x.csv", "-o", tmp_path / "c", "--dedup", "near", "--keep-order"
    )
    kept = rows_of(tmp_path / "c", kind="captions")
    assert next(iter(kept.values())).texts == ("a red door", "an old door", "a gate")
    assert len(kept) == 2
    assert report["dedup"]["near"]["texts"] == 2


def test_an_equal_copy_of_a_row_left_out_as_nearly_equal_goes_to_the_same_row(tmp_path, capsys):
    first, copy = encode(draw_scene(1)), change(draw_scene(1), "smaller")
    put(tmp_path / "f", {"a/1.png": first, "a/2.png": copy, "a/3.png": copy})
    report, _ = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c", "--dedup", "near", "--keep-order")
    assert report["rejected"] == {"near_duplicate": 2}
    assert {row["detail"] for row in rejects(tmp_path / "c").values()} == {"nearly the same image as f:a/1.png"}


def test_training_images_of_other_splits_go_from_training_and_the_other_splits_stay_as_they_are(tmp_path, capsys):
    put(tmp_path / "f", {f"train/a/{n}.png": encode(draw_scene(n)) for n in range(5)})
    put(tmp_path / "f", {"train/a/4-again.png": change(draw_scene(4), "smaller")})
    put(tmp_path / "f", {"val/a/v1.jpg": change(draw_scene(1), "jpeg"), "val/a/v2.png": encode(draw_scene(2))})
    put(tmp_path / "f", {"val/a/v2-again.jpg": change(draw_scene(2), "jpeg")})
    put(tmp_path / "f", {"test/a/t3.png": change(draw_scene(3), "larger"), "test/a/t9.png": encode(draw_scene(9))})
    argv = ("--labels", tmp_path / "f", "--keep-order", "--dedup", "near", "-o", tmp_path / "c")
    report, err = prepared(capsys, *argv)
    assert list(rows_of(tmp_path / "c")) == ["f:train/a/0.png", "f:train/a/4-again.png"]
    assert list(rows_of(tmp_path / "c", "val")) == ["f:val/a/v1.jpg", "f:val/a/v2-again.jpg"]
    assert len(rows_of(tmp_path / "c", "test")) == 2
    assert {key: row["detail"] for key, row in rejects(tmp_path / "c").items()} == {
        "f:train/a/1.png": "nearly the same image as f:val/a/v1.jpg, split val",
        "f:train/a/2.png": "nearly the same image as f:val/a/v2-again.jpg, split val",
        "f:train/a/3.png": "nearly the same image as f:test/a/t3.png, split test",
        "f:train/a/4.png": "nearly the same image as f:train/a/4-again.png",
        "f:val/a/v2.png": "nearly the same image as f:val/a/v2-again.jpg",
    }
    facts = report["dedup"]["near"]
    assert (facts["leaks"], facts["also_in_train"]) == ({"test": 1, "val": 2}, {"test": 0, "val": 0})
    assert (facts["groups"], facts["rows"], facts["equal"]) == (4, 5, 0)
    assert "2 training rows whose image is in the val split, exactly or nearly: their captions are left out, too" in err
    assert prepared(capsys, *argv)[0] == report
    (tmp_path / "c/duplicates.json").write_text("{", "utf-8")
    assert main(["prepare", "--repair", "-o", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert prepared(capsys, *argv)[0] == report


def test_a_corpus_from_before_training_rows_went_for_other_splits_is_sound(photos, capsys):
    argv = ("--labels", photos / "f", "-o", photos / "c", "--dedup", "near")
    prepared(capsys, *argv)
    for name, facts in (("manifest.json", lambda d: d["dedup"]["near"]), ("duplicates.json", lambda d: d["facts"])):
        file = photos / "c" / name
        document = json.loads(file.read_text("utf-8"))
        for later in ("leaks", "also_in_train"):
            del facts(document)[later]
        document.pop("leaks", None)
        file.write_text(json.dumps(document), "utf-8")
    assert main(["prepare", "--verify", "-o", str(photos / "c")]) == 0
    capsys.readouterr()
    assert "is complete" in prepared(capsys, *argv)[1]


def test_equal_training_images_of_any_kind_go_for_another_split_without_their_captions(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": encode(draw_scene(n % 10)) for n in (0, 1, 2, 3, 13)})
    put(tmp_path, {"2.jpg": change(draw_scene(2), "jpeg")})
    (tmp_path / "l.csv").write_text("image,label,split\n0.png,a,train\n1.png,b,test\n2.png,a,test\n")
    (tmp_path / "x.csv").write_text(
        "image,caption,split\n1.png,a red door,train\n2.jpg,a gate,train\n3.png,a cat,train\n13.png,a dog,test\n"
    )
    sources = ("--labels", tmp_path / "l.csv", "--captions", tmp_path / "x.csv")
    report, _ = prepared(capsys, *sources, "--dedup", "near", "-o", tmp_path / "c")
    assert report["dedup"]["near"]["leaks"] == {"test": 3}
    assert report["rejected"] == {"duplicate": 2, "near_duplicate": 1}
    assert report["duplicates_of_eval"] == {"test": 0}
    assert [row.texts for row in rows_of(tmp_path / "c", "test", "captions").values()] == [("a dog",)]
    assert all(row.texts == () for row in rows_of(tmp_path / "c", "test").values())
    assert list(rows_of(tmp_path / "c")) == ["l:0.png"]


def test_a_training_row_left_out_for_another_split_stays_for_no_duplicate(tmp_path, capsys):
    """A copy that is like the row, but not like the other split's image, is kept."""
    steps = [Image.blend(draw_scene(1), draw_scene(2), share / 40) for share in range(16)]
    put(tmp_path / "f", {f"train/a/{n:02}.png": encode(image) for n, image in enumerate(steps)})
    put(tmp_path / "f", {"test/a/t.png": encode(steps[0])})
    report, _ = prepared(capsys, "--labels", tmp_path / "f", "--keep-order", "-o", tmp_path / "c", "--dedup", "near")
    leaks = report["dedup"]["near"]["leaks"]["test"]
    kept, gone = rows_of(tmp_path / "c"), rejects(tmp_path / "c")
    of_train = [row["detail"] for row in gone.values() if not row["detail"].endswith("f:test/a/t.png, split test")]
    assert leaks == len(gone) - len(of_train) > 1
    assert of_train
    assert {detail.rpartition(" ")[2] for detail in of_train} <= kept.keys()


def test_images_of_another_corpus_are_left_out_and_counted(photos, capsys):
    put(photos / "t", {f"x/{n}.png": encode(draw_scene(n)) for n in (7, 8)})
    put(
        photos / "t", {"x/9.jpg": change(draw_scene(9), "jpeg"), "x/w.png": encode(Image.new("RGB", (40, 40), "white"))}
    )
    put(photos / "u", {"test/x/0.png": encode(draw_scene(0)), "train/x/7.jpg": change(draw_scene(7), "jpeg")})
    for name in ("t", "u"):
        prepared(capsys, "--labels", photos / name, "-o", photos / f"{name}-corpus")
    argv = ["--labels", photos / "f", "-o", photos / "c", "--not-in", f"file://{photos}/t-corpus"]
    report, err = prepared(capsys, *argv, "--not-in", f"{photos / 'u-corpus'}?split=test")
    assert report["rejected"] == {"in_other_corpus": 6}
    found = {of["name"]: (of["split"], of["same"], of["near"]) for of in report["not_in"]}
    assert found == {"t-corpus": (None, 3, 1), "u-corpus": ("test", 1, 1)}
    assert "left out 4 rows whose image is in t-corpus (--not-in): 3 the same, 1 nearly" in err
    left_out = {key.rpartition("/")[2]: row["detail"] for key, row in rejects(photos / "c").items()}
    assert left_out["7.png"] == "the same image as t:x/7.png of t-corpus, train"
    assert left_out["9.png"] == "nearly the same image as t:x/9.jpg of t-corpus, train"
    assert left_out["plain1.png"].startswith("the same image as")
    assert "0-smaller.img" in left_out
    manifest = open_corpus(photos / "c").manifest
    assert [of.model_dump() for of in manifest.not_in] == report["not_in"]
    assert not (photos / "c" / not_in.FILE).exists()
    assert main(["prepare", "--verify", "-o", str(photos / "c")]) == 0
    # other corpora, or none, are another plan
    capsys.readouterr()
    assert main(["prepare", *map(str, argv)]) == 2
    assert "--not-in" in capsys.readouterr().err
    assert main(["prepare", *map(str, argv[:4])]) == 2
    assert "t-corpus" in capsys.readouterr().err


def test_a_row_left_out_for_another_corpus_stays_for_no_duplicate(tmp_path, capsys):
    """A copy that is like the row, but not like the other corpus's image, is kept."""
    steps = [Image.blend(draw_scene(1), draw_scene(2), share / 40) for share in range(16)]
    put(tmp_path / "f", {f"a/{n:02}.png": encode(image) for n, image in enumerate(steps)})
    put(tmp_path / "t", {"a/t.png": encode(steps[0])})
    prepared(capsys, "--labels", tmp_path / "t", "-o", tmp_path / "test")
    argv = ("--labels", tmp_path / "f", "--keep-order", "-o", tmp_path / "c", "--dedup", "near")
    report, _ = prepared(capsys, *argv, "--not-in", tmp_path / "test")
    assert report["rejected"]["in_other_corpus"] > 1
    assert report["rejected"]["near_duplicate"] > 1
    kept, gone = rows_of(tmp_path / "c"), rejects(tmp_path / "c")
    for row in gone.values():
        if row["reason"] == "near_duplicate":
            assert row["detail"].rpartition(" ")[2] in kept


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}/nothing", "no corpus here"),
        ("{}/test?split=val", "has no split 'val'"),
        ("{}/test?splt=train", "unknown option 'splt'"),
        ("{}/c", "is the same corpus"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_named(tmp_path, capsys, value, message):
    put(tmp_path / "t", {"a/t.png": encode(draw_scene(1))})
    prepared(capsys, "--labels", tmp_path / "t", "-o", tmp_path / "test")
    argv = ["--labels", str(tmp_path / "t"), "-o", str(tmp_path / "c"), "--not-in", value.format(tmp_path)]
    assert main(["prepare", *argv]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_a_dry_run_reads_no_other_corpus_and_writes_nothing(tmp_path, capsys):
    put(tmp_path / "t", {"a/t.png": encode(draw_scene(1))})
    prepared(capsys, "--labels", tmp_path / "t", "-o", tmp_path / "test")
    argv = ["--labels", str(tmp_path / "t"), "-o", str(tmp_path / "c"), "--not-in", str(tmp_path / "test"), "--dry-run"]
    assert main(["prepare", *argv]) == 0
    assert "rows that --dedup and --not-in leave out are not searched for" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
