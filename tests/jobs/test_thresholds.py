"""A run on rows with label sets, end to end: validations, the best checkpoint, thresholds, and what reads them."""

import json
import shutil

import pytest
from launching import TINY, done, here
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.errors import UniclError
from unicl_cli.runs.folder import THRESHOLDS
from unicl_cli.runs.thresholds import Thresholds, load_thresholds, write_thresholds

PLUGIN = """
from unicl_cli.data.sources.shapes import Shapes

class Split(Shapes):
    splits = ("train", "val", "test")

def made(*, kind: str):
    return Split(kind, 16, {"train": 96, "val": 48, "test": 48}, 0, captions=True, attributes=True)

PARTS = {"datasets": {"made": made}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    (root / "plugin.py").write_text(PLUGIN)
    here("--plugin", root / "plugin.py", "prepare", "--labels", "made", "-o", root / "corpus", "--quiet")
    whole = TINY | {
        "data": TINY["data"] | {"train": [{"corpus": str(root / "corpus")}]},
        "eval": [{"corpus": str(root / "corpus"), "split": "val", "every": 4}],
        "checkpoint": {"every": 4, "keep": 2, "best": {}},
    }
    (root / "r.yaml").write_text(json.dumps(whole))
    here("train", root / "r.yaml", "--run-dir", root / "run", "--devices", "cpu:1", "--quiet")
    return root / "run"


def told(capsys, *words, code=0):
    """The output of a command, as JSON if it succeeded, and its messages."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if code == 0 else out), err


def test_validations_track_map_and_the_best_checkpoint_follows_it(run, capsys):
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert all(0 < line["map"] < 1 and "top1" not in line for line in lines)
    best = max(lines, key=lambda line: line["map"])["step"]
    assert (run / "checkpoints" / "best").read_text().strip() == f"step-{best:08d}"
    listed, _ = told(capsys, "runs", "ls", run.parent, "--json")
    (only,) = [each for each in listed["runs"] if each["run"] == str(run)]
    assert (only["best_metric"], only["best"]) == ("map", max(line["map"] for line in lines))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["label_share"] for line in metrics} == {1.0}
    assert not any("positives" in line for line in metrics), "keys do not tell the positives of label sets"


def test_thresholds_are_fitted_on_val_and_f1_is_reported_on_test(run, capsys):
    found, said = told(capsys, "eval", run, "--fit-thresholds", "--json")
    file = run / "thresholds.json"
    assert (found["split"], found["file"], len(found["classes"])) == ("val", str(file), 18)
    assert f"wrote {file}" in said
    kept = load_thresholds(run / THRESHOLDS)
    assert (kept.thresholds, kept.scale, kept.n) == (found["thresholds"], found["scale"], found["n"])
    assert set(json.loads(file.read_text())) == {
        "schema", "data", "split", "n", "weights", "classes", "scale", "bias", "thresholds",
    }  # fmt: skip
    document, said = told(capsys, "eval", run, "--json")
    (entry,) = document["data"]
    assert (entry["split"], entry["thresholds"]["split"], entry["thresholds"]["file"]) == ("test", "val", str(file))
    assert 0 < entry["f1_micro"] <= 1
    assert "F1 is too high" not in said
    _, said = told(capsys, "eval", run, "--split", "val", "--json")
    assert "were fitted on this split: F1 is too high; use another split" in said
    plain, _ = told(capsys, "eval", run, "--template", "{}", "--json")
    assert "f1_micro" not in plain["data"][0], "they were fitted for other prompts"
    given, _ = told(capsys, "eval", run, "--template", "{}", "--thresholds", file, "--json")
    assert "f1_micro" in given["data"][0]
    assert main(["eval", str(run), "--html", str(run.parent / "page.html")]) == 0
    page, table = (run.parent / "page.html").read_text(), capsys.readouterr().out
    assert "Average precision per class" in page
    assert "Groups of classes" in page
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "F1 at the thresholds of" in table.replace("\n", " ")
    assert (
        main(["compare", str(run), str(run / "checkpoints" / "step-00000004"), "--html", str(run.parent / "c.html")])
        == 0
    )
    assert "mAP" in capsys.readouterr().out


def test_a_checkpoint_or_other_prompts_need_a_file_of_their_own(run, capsys, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000004"
    _, said = told(capsys, "eval", checkpoint, "--fit-thresholds", code=2)
    assert "is not a run, so there is no folder for them\n  hint: name a file for them: -o FILE" in said
    _, said = told(capsys, "eval", run, "--fit-thresholds", "--template", "{}", code=2)
    assert "would answer with other weights or prompts" in said
    told(capsys, "eval", checkpoint, "--fit-thresholds", "-o", tmp_path / "t.json", "--json")
    assert load_thresholds(tmp_path / "t.json").split == "val"


def test_thresholds_of_other_weights_are_told(run, capsys, tmp_path):
    """A run that was trained further, or weights that someone replaced."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "thresholds.json"
    told(capsys, "eval", copy, "--fit-thresholds", "--json")
    image = tmp_path / "x.png"
    Image.new("RGB", (16, 16)).save(image)
    words = ("zeroshot", image, "--model", copy, "--multi", "--json")
    assert "labels" in told(capsys, *words)[0]
    shutil.copy(copy / "checkpoints" / "step-00000004" / "model.safetensors", copy / "model.safetensors")
    stale = f"{file}: the thresholds were fitted for other weights than the model has now"
    document, said = told(capsys, "eval", copy, "--json")
    assert "f1_micro" not in document["data"][0]
    assert f"no F1: {stale}; fit them again" in said
    _, said = told(capsys, *words, code=2)
    assert f"{stale}\n  hint: fit them again: unicl eval {copy} --fit-thresholds" in said
    answer, said = told(capsys, *words, "--thresholds", file)
    assert "labels" in answer
    assert f"warning: {stale}" in said
    told(capsys, "eval", copy, "--fit-thresholds", "--json")
    assert "f1_micro" in told(capsys, "eval", copy, "--json")[0]["data"][0]


def test_a_file_that_names_no_weights_counts_as_it_did(run, capsys, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000004"
    told(capsys, "eval", checkpoint, "--fit-thresholds", "-o", tmp_path / "t.json", "--json")
    values = json.loads((tmp_path / "t.json").read_text())
    del values["weights"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    for name in ("t", "old"):
        document, said = told(capsys, "eval", checkpoint, "--thresholds", tmp_path / f"{name}.json", "--json")
        assert "f1_micro" in document["data"][0]
        assert "other weights" not in said
    assert "other weights" in told(capsys, "eval", run, "--thresholds", tmp_path / "t.json", "--json")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--split", "nowhere"), "has no split 'nowhere'"),
        (("--html", "p.html"), "--html: cannot be combined with --fit-thresholds"),
        (("--evaluator", "probe"), "--evaluator: cannot be combined with --fit-thresholds"),
    ],
)
def test_a_fit_that_cannot_be_made_is_one_line(run, capsys, words, said):
    _, err = told(capsys, "eval", run, "--fit-thresholds", *words, code=2)
    assert said in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"thresholds": [0.5]}, "has 1 thresholds for 2 classes"),
        ({"thresholds": [0.5, 1.5]}, "thresholds.1: should be less than or equal to 1"),
        ({"classes": ["a", "a"]}, "has a class twice"),
        ({"scale": "1"}, "scale: should be a valid number"),
        ({"schema": "unicl/eval/1"}, "schema: should be"),
        (None, "damaged"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, said):
    file, sound = (
        tmp_path / "t.json",
        Thresholds(data="c", split="val", n=3, classes=["a", "b"], scale=1.0, bias=0.0, thresholds=[0.5, 0.25]),
    )
    write_thresholds(file, sound)
    assert load_thresholds(file) == sound
    values = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps(values | change))
    with pytest.raises(UniclError, match="damaged") as found:
        load_thresholds(file)
    assert said in found.value.message
    with pytest.raises(UniclError, match="no such file of thresholds"):
        load_thresholds(tmp_path / "none.json")


def test_a_probe_of_label_sets_answers_with_a_sigmoid(run, capsys, tmp_path):
    document, _ = told(capsys, "probe", run, "--c", "1", "--save", tmp_path / "p.safetensors", "--json")
    assert 0 < document["map"] < 1
    assert "top1" not in document
    assert main(["probe", str(run), "--c", "1"]) == 0
    assert "mAP" in capsys.readouterr().out
    _, said = told(capsys, "probe", run, "--method", "knn", code=2)
    assert "takes one label per row" in said


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        Image.new("RGB", (16, 16), (50 * number, 90, 9)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_two_processes_give_the_label_sets_of_one(run, images, capsys):
    here("eval", run, "--fit-thresholds", "-q")
    words = ("zeroshot", images, "--model", run, "--multi", "--json", "-q")
    capsys.readouterr()
    here(*words, "--devices", "cpu:1")
    one, two = capsys.readouterr().out.splitlines(), done(*words, "--devices", "cpu:2").splitlines()
    assert len(one) == 5
    for a, b in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert a["path"] == b["path"]
        assert [item["label"] for item in a["labels"]] == [item["label"] for item in b["labels"]]
        assert [item["prob"] for item in a["top"]] == pytest.approx([item["prob"] for item in b["top"]], abs=1e-4)


def test_a_probe_of_label_sets_answers_with_several_labels(run, images, capsys, tmp_path):
    told(capsys, "probe", run, "--c", "1", "--save", tmp_path / "p.safetensors", "--json")
    words = ["zeroshot", str(images), "--probe", str(tmp_path / "p.safetensors"), "--json", "--devices", "cpu:1"]
    assert main([*words, "--multi", "--threshold", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["labels"]) for row in rows] == [18] * 5
    assert main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[each["group"] for each in row["groups"]] for row in rows] == [["colour", "shape", "texture"]] * 5


def test_predictions_of_label_sets_are_refused_after_the_figures(run, capsys, tmp_path):
    out, said = told(capsys, "eval", run, "--predictions", tmp_path / "p.csv", "--json", code=2)
    assert json.loads(out)["data"][0]["map"] > 0
    assert f"--predictions {tmp_path / 'p.csv'}: not written: rows of corpus test have label sets" in said
    assert not (tmp_path / "p.csv").exists()
