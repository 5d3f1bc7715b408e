"""Classes of a corpus: examples of the first, classes without an image, and numbers that two sources share."""

import io

import pytest
from PIL import Image
from toys import prepared, put

from unicl_cli.cli import main
from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.plan.classes import describe_names, merge_classes
from unicl_cli.jobs.prepare.plan_file import list_differences


def picture(seed=0):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (seed, 30, 9)).save(out, "PNG")
    return out.getvalue()


def test_the_first_classes_are_shown_with_an_image_and_those_without_one_are_told(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(seed=n) for n in range(3)})
    (tmp_path / "l.csv").write_text("image,label,id\n0.png,3,x\n1.png,0,y\n2.png,3,z\n")
    (tmp_path / "names.txt").write_text("tern\ngull\nauk\nskua\nnoddy\n")
    report, err = prepared(
        capsys, "--labels", f"{tmp_path / 'l.csv'}?classes={tmp_path / 'names.txt'}", "-o", tmp_path / "c"
    )
    assert [(each["id"], each["class"]) for each in report["class_examples"]] == [(0, "tern"), (1, "gull"), (2, "auk")]
    assert report["class_examples"][0]["image"].startswith("l:")
    assert report["class_examples"][1]["image"] is None
    assert "classes without an image (3 of 5): gull, auk, noddy" in err
    assert main(["prepare", "--labels", str(tmp_path / "l.csv"), "-o", str(tmp_path / "d"), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "class 1: 3 (l:" in shown.out
    assert "2 of 2 class names are numbers: 0, 3" in shown.err


def test_a_number_with_two_names_in_two_sources_is_refused_and_one_without_names_is_told(tmp_path, capsys):
    for name, classes in (("a", "tern gull"), ("b", "fox owl"), ("c", "")):
        put(tmp_path / name, {f"{n}/1.png": picture(seed=n) for n in range(2)})
        (tmp_path / f"{name}.txt").write_text("\n".join(classes.split()))
    _, err = prepared(capsys, "--labels", tmp_path / "a", "--labels", tmp_path / "c", "-o", tmp_path / "x")
    assert "c: shared classes are numbers, for example 0: check that they mean the same in a" in err
    named = [f"{tmp_path / name}?classes={tmp_path / name}.txt" for name in "ab"]
    report, _ = prepared(capsys, "--labels", named[0], "--labels", named[1], "-o", tmp_path / "y")
    assert report["classes"] == 4
    with pytest.raises(UniclError, match="class 0 is 'tern' in a, and 'fox' in b"):
        merge_classes([("a", [ClassName("0", ("tern",))]), ("b", [ClassName("0", ("fox",))])], [])


def test_plans_with_other_classes_differ_in_words_not_hashes():
    old = {"classes": "eacb61", "holdout": None, "sources": []}
    assert list_differences(old, old | {"classes": "1dc68d"}) == ["the classes differ"]


def test_a_class_whose_images_are_all_left_out_is_counted_alike_everywhere(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(seed=n) for n in range(3)})
    lines = ["0.png,auk", "x.png,gull", "1.png,gull", "y.png,skua", "z.png,skua", "2.png,tern"]
    (tmp_path / "l.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    argv = ("--labels", tmp_path / "l.csv", "-o", tmp_path / "c")
    report, err = prepared(capsys, *argv)
    assert (report["classes"], report["classes_without_images"], report["sources"][0]["classes"]) == (4, 1, 3)
    note = "classes whose images are all left out (1 of 4): skua"
    assert note in err
    assert note in report["notes"]
    shown = {each["class"]: each["image"] for each in report["class_examples"]}
    assert shown == {"auk": "l:0.png", "gull": "l:1.png", "skua": None}, "no image that is left out"
    assert main(["prepare", *map(str, argv)]) == 0
    out = capsys.readouterr().out
    assert "c: 3 rows, 4 classes (1 without an image), " in out
    assert "class 2: skua (no image)" in out
    (tmp_path / "c" / "rejects").joinpath("train.l-labels-00000-of-00001.jsonl").write_text("{}\n3\n{\n")
    assert prepared(capsys, *argv)[0]["classes"] == 4, "a file of rejects is for people"


def test_without_rows_left_out_nothing_is_said_of_empty_classes(tmp_path, capsys):
    put(tmp_path / "f", {f"{name}/1.png": picture(seed=n) for n, name in enumerate(("auk", "gull"))})
    assert main(["prepare", "--labels", str(tmp_path / "f"), "-o", str(tmp_path / "c")]) == 0
    assert "c: 2 rows, 2 classes, " in capsys.readouterr().out


def test_labels_of_several_lines_are_told_whatever_the_source():
    classes = [ClassName("Border\nCollie", ("Border Collie",)), ClassName("owl", ("owl",))]
    assert describe_names(classes) == [
        "labels with a line break or another control character, each taken as one class (1 of 2 classes): "
        "'Border\nCollie': check that none of them names several classes"
    ]


@pytest.mark.parametrize(
    "names", [("1", "0x1"), ("1000", "1e3"), ("1.0", "01"), ("1 000", "1000"), ("class 2", "class 02")]
)
def test_names_that_are_one_number_are_told_whatever_the_source(names):
    notes = describe_names([ClassName(f"{n}", (name,)) for n, name in enumerate(names)])
    assert notes[0].startswith("1 name is shared by several classes, so their prompts are equal")


def test_quiet_hides_what_only_informs_and_shows_what_may_be_wrong(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(seed=n) for n in range(3)})
    good = "image,label\n0.png,fox\n1.png,owl\n1.png,owl\n"
    bad = "image,label\n0.png,red fox\n1.png,fox\n2.png,owl\n,\n,\nx.png,auk\n"
    for name, content in (("good", good), ("bad", bad)):
        (tmp_path / f"{name}.csv").write_text(content)
        argv = ["prepare", "--labels", str(tmp_path / f"{name}.csv"), "-o"]
        assert main([*argv, str(tmp_path / name)]) == 0
        loud = capsys.readouterr().err
        assert main([*argv, str(tmp_path / f"{name}-quiet"), "--quiet"]) == 0
        quiet = capsys.readouterr().err
        if name == "good":
            assert "good.csv: dropped lines that repeat an earlier one" in loud
            assert quiet == ""
        else:
            assert "1 of 4 labels seem to name several classes" in quiet
            assert "lines without a filled cell, left out: 2" in quiet
            assert "classes whose images are all left out (1 of 4): auk" in quiet


def test_classes_named_like_copies_of_others_are_told():
    names = ["cat", "cat (1)", "dog", "dog Copy", "Copy of Owl", "owl", "owl Copy (2)", "photo copy", "f (2)"]
    told = describe_names([ClassName(name, (name,)) for name in names])
    assert told == [
        "classes named like a copy of another (4): 'cat (1)' of 'cat', 'dog Copy' of 'dog', 'Copy of Owl' of 'owl', …: "
        "make one class of them if they are one"
    ]


def test_classes_that_training_never_sees_are_told(tmp_path, capsys):
    places = ("train/cat/1", "train/dog/2", "test/cat/3", "test/fox/4", "val/Dog/5")
    put(tmp_path / "f", {f"{place}.png": picture(seed=n) for n, place in enumerate(places)})
    _, err = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c")
    assert "classes with images in other splits and none in train (2 of 4): Dog, fox" in err
    put(tmp_path / "g", {"dog/6.png": picture(seed=6), "fox/7.png": picture(seed=7), "Dog/8.png": picture(seed=8)})
    _, err = prepared(capsys, "--labels", tmp_path / "f", "--labels", tmp_path / "g", "-o", tmp_path / "d")
    assert "none in train" not in err
    _, err = prepared(capsys, "--labels", f"{tmp_path / 'g'}?split=test", "-o", tmp_path / "e")
    assert "none in train" not in err


@pytest.mark.parametrize(
    ("name", "split"),
    [("val2019.json", "val"), ("test/list.json", "test"), ("a_train.json", None), ("list.json", None)],
)
def test_a_source_whose_name_says_another_split_is_told(tmp_path, capsys, name, split):
    for folder in ("test", "dev"):
        put(tmp_path / folder, {f"{n}.png": picture(seed=n) for n in range(2)})
    put(tmp_path, {f"{n}.png": picture(seed=n) for n in range(2)})
    (tmp_path / name).write_text('[{"image": "0.png", "label": "a"}, {"image": "1.png", "label": "b"}]')
    _, err = prepared(capsys, "--labels", tmp_path / name, "-o", tmp_path / "c")
    way = f"and its rows are in train: to have them in {split}, use '{tmp_path / name}?split={split}'"
    assert (f"its name says {split}, {way}" in err) if split else ("its name says" not in err)
    _, err = prepared(capsys, "--labels", f"{tmp_path / name}?split=train", "-o", tmp_path / "d")
    assert "its name says" not in err
    _, err = prepared(capsys, "--images", f"{tmp_path / 'test'}?splits=true", "-o", tmp_path / "e")
    assert f"use '{tmp_path / 'test'}?splits=true&split=test'" in err
