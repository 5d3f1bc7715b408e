"""Classes of a corpus: examples of the first, classes without an image, and numbers that two sources share."""

import io

import pytest
from PIL import Image
from toys import prepared, put

from unicl_cli.cli import main
from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.classes import merge_classes
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
