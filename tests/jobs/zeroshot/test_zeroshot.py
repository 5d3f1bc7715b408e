"""`zeroshot` on a real toy model: inputs, classes, order, errors, batches; and the command in a fresh process."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from toys import PLAIN, toy

from unicl_cli.build.load import Loaded
from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.inference.image_inputs import find_images
from unicl_cli.jobs.zeroshot.answers import AnswerOptions
from unicl_cli.jobs.zeroshot.classes import parse_classes
from unicl_cli.jobs.zeroshot.judge import make_judge
from unicl_cli.jobs.zeroshot.output import Layout, format_lines
from unicl_cli.jobs.zeroshot.zeroshot import zeroshot
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.losses.unicl import UniCL


def line_of(row) -> str:
    (line,) = format_lines(row, Layout(("cat", "dog")))
    return line


def rows(loaded: Loaded, inputs: list[str], classes: str | None = "cat,dog,bird", *, batch: int = 32, **wanted):
    asked = None if classes is None else parse_classes(classes)
    judge = make_judge(loaded, asked, AnswerOptions(**wanted), PLAIN)
    return [row for part in zeroshot(loaded, find_images(inputs), judge, batch=batch) for row in part]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven noisy images in two folders, one that is not an image, a file of another kind, a hidden one."""
    for number in range(7):
        path = tmp_path / "pics" / ("sub" if number % 2 else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (12, 9, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path)
    (tmp_path / "pics" / "notes.txt").write_text("no image")
    (tmp_path / "pics" / "._0.png").write_bytes(b"litter")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 cut")
    return tmp_path


def test_folders_globs_and_files_are_found_in_the_order_given(folder):
    found = list(find_images([str(folder / "pics/sub/5.png"), str(folder / "pics"), str(folder / "pics/*.png")]))
    names = [Path(picture.path).relative_to(folder / "pics").as_posix() for picture in found]
    top = ["0.png", "2.png", "4.png", "6.png"]
    assert names == ["sub/5.png", *top, "sub/1.png", "sub/3.png", "sub/5.png", *top]
    assert all(picture.problem is None for picture in found)


def test_inputs_that_hold_nothing_keep_their_place_and_say_why(folder):
    (folder / "empty").mkdir()
    inputs = [str(folder / name) for name in ("nope.png", "pics/0.png", "empty", "x*.png")]
    assert [picture.problem for picture in find_images(inputs)] == [
        "no such file",
        None,
        "a folder without images",
        "the pattern matches no file",
    ]


def test_a_file_with_brackets_in_its_name_is_a_file(folder):
    path = folder / "photo [1].png"
    (folder / "pics/0.png").rename(path)
    assert list(find_images([str(path)])) == [(str(path), None, None)]


def test_a_bad_picture_between_good_ones_is_a_row_and_the_others_are_answered(folder):
    inputs = [str(folder / name) for name in ("pics/0.png", "bad.jpg", "pics/2.png", "gone.png")]
    got = rows(toy(), inputs, batch=2)
    assert [row["path"] for row in got] == inputs
    assert [row["error"] for row in got] == [None, "not an image", None, "no such file"]
    assert [row["label"] is None for row in got] == [False, True, False, True]
    assert got[1] == {"path": inputs[1], "label": None, "prob": None, "top": [], "error": "not an image"}
    alone = rows(toy(), [inputs[2]])
    assert got[2]["top"] == alone[0]["top"]


def test_one_and_thirty_two_at_a_time_give_the_same(folder):
    one, many = (rows(toy(), [str(folder / "pics")], batch=batch) for batch in (1, 32))
    assert len(one) == 7
    for left, right in zip(one, many, strict=True):
        assert left["path"] == right["path"]
        assert [item["label"] for item in left["top"]] == [item["label"] for item in right["top"]]
        assert [item["prob"] for item in left["top"]] == pytest.approx(
            [item["prob"] for item in right["top"]], abs=1e-5
        )


def test_probabilities_are_the_softmax_of_scaled_cosines_and_top_k_is_clipped(folder):
    (row,) = rows(toy(), [str(folder / "pics/0.png")], top_k=9)
    cosines = torch.tensor([item["cosine"] for item in row["top"]])
    probabilities = torch.tensor([item["prob"] for item in row["top"]])
    assert len(row["top"]) == 3
    torch.testing.assert_close(probabilities, (14.0 * cosines).softmax(0), rtol=0, atol=1e-4)
    assert cosines.tolist() == sorted(cosines.tolist(), reverse=True)
    assert (row["label"], row["prob"]) == (row["top"][0]["label"], row["top"][0]["prob"])


def test_a_sigmoid_loss_gives_each_class_its_own_probability(folder):
    loss = UniCL()
    loss.activation, loss.bias = "sigmoid", nn.Parameter(torch.tensor([-2.0]))
    (row,) = rows(toy(loss), [str(folder / "pics/0.png")])
    for item in row["top"]:
        assert item["prob"] == pytest.approx(torch.tensor(14.0 * item["cosine"] - 2).sigmoid().item(), abs=1e-4)


def test_one_class_alone_is_certain(folder):
    (row,) = rows(toy(), [str(folder / "pics/0.png")], "cat")
    assert (row["label"], row["prob"], len(row["top"])) == ("cat", 1.0, 1)


def test_without_classes_the_model_answers_with_its_own_or_asks_for_some(folder):
    (row,) = rows(toy(classes=("bird", "leopard")), [str(folder / "pics/0.png")], None)
    assert {item["label"] for item in row["top"]} == {"bird", "leopard"}
    with pytest.raises(UniclError, match="no classes of its own"):
        rows(toy(), [str(folder / "pics/0.png")], None)


def test_a_head_has_no_cosine_and_knows_its_classes_by_name(folder):
    loaded = toy(CrossEntropy(16, 2), classes=("bird", "cat"))
    (row,) = rows(loaded, [str(folder / "pics/0.png")], "cat,bird")
    assert {item["label"] for item in row["top"]} == {"bird", "cat"}
    assert all(item["cosine"] is None for item in row["top"])
    assert sum(item["prob"] for item in row["top"]) == pytest.approx(1, abs=1e-5)


def test_aliases_are_averaged_under_the_first_name(folder):
    (alone,) = rows(toy(), [str(folder / "pics/0.png")], "cat,dog")
    (several,) = rows(toy(), [str(folder / "pics/0.png")], "cat=leopard|snow leopard,dog")
    assert {item["label"] for item in several["top"]} == {"cat", "dog"}
    cosine = {item["label"]: item["cosine"] for item in several["top"]}
    before = {item["label"]: item["cosine"] for item in alone["top"]}
    assert cosine["cat"] != before["cat"]
    assert cosine["dog"] == pytest.approx(before["dog"], abs=1e-6)


def test_a_diverged_model_fails_with_status_one(folder):
    loaded = toy()
    loaded.step.model.see.weight.data.fill_(torch.nan)
    with pytest.raises(UniclError, match="non-finite features from toy") as caught:
        rows(loaded, [str(folder / "pics/0.png")])
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("cat,dog", ["cat", "dog"]),
        (' cat , "salt, pepper & co" ,, naïve 猫 ', ["cat", "salt, pepper & co", "naïve 猫"]),
        ('"12"" ruler",x', ['12" ruler', "x"]),
        ("one", ["one"]),
        ("cat\ndog, bird\n", ["cat", "dog", "bird"]),
    ],
)
def test_classes_are_cells_of_a_csv_line(spec, names):
    assert [each.names[0] for each in parse_classes(spec).names] == names


def test_repeated_classes_are_dropped_and_told():
    got = parse_classes("cat,dog, cat,dog,cat")
    assert [each.names[0] for each in got.names] == ["cat", "dog"]
    assert got.warnings == ("--classes names cat, dog more than once",)


def test_aliases_stand_behind_an_equals_sign():
    assert parse_classes("dog = hound| puppy |,cat=").names == (
        ClassName("dog", ("dog", "hound", "puppy")),
        ClassName("cat", ("cat",)),
    )


def test_a_file_of_classes_has_one_a_line(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffsalt, pepper\n\n  cat \ncat\r\n", encoding="utf-8")
    assert [each.names[0] for each in parse_classes(f"@{path}").names] == ["salt, pepper", "cat"]


@pytest.mark.parametrize("spec", ["", " , ,", "@/no/such/file"])
def test_no_class_is_a_mistake_with_a_hint(spec):
    with pytest.raises(UniclError, match="--classes") as caught:
        parse_classes(spec)
    assert caught.value.hint
    assert "Errno" not in caught.value.message


@given(
    st.lists(st.text(st.characters(exclude_characters='\n\r"=', exclude_categories=("C", "Z")), min_size=1), min_size=1)
)
@settings(max_examples=50, deadline=None)
def test_any_names_survive_quoting(names):
    if names[0].startswith("@"):
        return
    spec = ",".join(f'"{name}"' for name in names)
    assert [each.names[0] for each in parse_classes(spec).names] == list(dict.fromkeys(names))


def test_the_plain_line_is_one_row_a_picture():
    top = [{"label": "cat", "prob": 0.931, "cosine": 0.2}, {"label": "dog", "prob": 0.05, "cosine": 0.1}]
    row = {"path": "a.png", "label": "cat", "prob": 0.931, "top": top, "error": None}
    assert line_of(row) == "a.png\tcat 93.1 %\tdog 5.0 %"
    assert line_of(row | {"error": "not an image"}) == "a.png\terror: not an image"
    assert json.loads(json.dumps(row)) == row
