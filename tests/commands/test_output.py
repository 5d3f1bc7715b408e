"""`eval`, `probe` and `zeroshot` as commands on runs that `train` wrote: streams, JSON, exit codes, processes."""

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forking import begin
from launching import begun, ended
from PIL import Image

from unicl_cli.cli import main, run
from unicl_cli.errors import UniclError

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
BASE = """
data:
  train: [{{corpus: {corpus}}}]
  image_size: 16
  templates: ["a photo of a {{}}.", "{{}}"]
  augment: none
model: {{image: {{name: cnn, width: 8, stages: 2}}, text: {{name: cbow, width: 16}}, embed_dim: 16, context_length: 24}}
batch: {{size: 24}}
optim: {{lr: 1e-2}}
schedule: {{warmup: 0}}
steps: 30
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus of three colours with a train and a test split, and a recipe of a tiny model."""
    root = tmp_path_factory.mktemp("measure")
    for split, count, height in (("train", 12, 16), ("test", 5, 17)):  # no image is in both
        for name, colour in COLOURS.items():
            for number in range(count):
                path = root / "pictures" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, height), tuple(max(0, part - 5 * number) for part in colour)).save(path)
    assert run(["prepare", "--labels", str(root / "pictures"), "-o", str(root / "corpus"), "--workers", "1"]) == 0
    (root / "tiny.yaml").write_text(BASE.format(corpus=root / "corpus"))
    return root


def trained(place: Path, name: str, *changes: str) -> str:
    folder = place / name
    if not (folder / "meta.json").is_file():
        assert run(["train", str(place / "tiny.yaml"), *changes, "--run-dir", str(folder), "--quiet"]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def model(place) -> str:
    return trained(place, "unicl")


def answer(capsys, *args: str) -> tuple[str, str]:
    capsys.readouterr()
    assert run(args) == 0
    return capsys.readouterr()


def test_measuring_does_not_pay_for_torchs_compiler(model, place):
    """Its import takes as long as torch's own; torchvision and FSDP2 bring it along."""
    code = (
        "import json, sys; from unicl_cli.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert main(words) == 0, words\n"
        "    heavy = {'torchvision', 'torch._dynamo', 'timm'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    zeroshot = ["zeroshot", str(place / "pictures/test/red/0.png"), "--classes", "red,blue"]
    lines = [[*words, "--model", model, "--quiet"] for words in (["eval"], ["probe"], zeroshot)]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_eval_prints_tables_or_one_document_and_writes_the_same_to_a_file(model, place, capsys):
    out, _ = answer(capsys, "eval", model, "--batch", "4")
    assert "Classification, %" in out
    assert all(name in out for name in COLOURS)
    out, err = answer(capsys, "eval", "--model", model, "--json", "--out", str(place / "new" / "e.json"))
    document = json.loads(out)
    assert err == ""
    assert json.loads((place / "new" / "e.json").read_text()) == document
    assert list(document) == ["schema", "model", "data"]
    (entry,) = document["data"]
    assert (entry["split"], entry["n"]) == ("test", 15)
    assert entry["top1"] == 1.0


def test_templates_of_the_command_line_replace_those_of_the_model(model, capsys):
    other, _ = answer(capsys, "eval", model, "--template", "nothing {}", "--template", "none", "--json")
    assert json.loads(other)["data"][0]["n"] == 15
    with pytest.raises(UniclError, match="templates 'clip8': unknown; did you mean 'clip80'"):
        run(["eval", model, "--template", "clip8"])


def test_probe_prints_tables_or_one_document(model, capsys):
    out, _ = answer(capsys, "probe", model)
    assert "Linear probe, %" in out
    document = json.loads(answer(capsys, "probe", model, "--features", "post", "--json")[0])
    assert (document["schema"], document["features"], document["n"]) == ("unicl/probe/1", "post", 15)
    assert document["top1"] == 1.0


def test_zeroshot_answers_with_lines_and_takes_a_class_that_training_never_saw(model, place, capsys):
    image = str(place / "pictures" / "test" / "red" / "0.png")
    out, _ = answer(capsys, "zeroshot", image, "--classes", "blue,red", "--model", model, "--top-k", "1")
    assert out.startswith(f"{image}\tred ")
    out, err = answer(capsys, "zeroshot", image, "--classes", "red,a heffalump,red", "--model", model, "--json")
    row = json.loads(out)
    assert {item["label"] for item in row["top"]} == {"red", "a heffalump"}
    assert err == "warning: --classes names red more than once\n"


def test_a_bad_image_is_a_row_and_status_two(model, place, capsys):
    (place / "bad.png").write_bytes(b"no image")
    inputs = [str(place / "pictures/test/red/0.png"), str(place / "bad.png"), str(place / "pictures/test/blue/0.png")]
    capsys.readouterr()
    with pytest.raises(UniclError, match="1 of 3 images could not be read") as caught:
        run(["zeroshot", *inputs, "--classes", "red,blue", "--model", model, "--json"])
    assert caught.value.exit_code == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["path"], row["label"], row["error"]) for row in rows] == [
        (inputs[0], "red", None),
        (inputs[1], None, "not an image"),
        (inputs[2], "blue", None),
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "one", "--model", "two"], "two models given: one and --model two"),
        (["eval", "nowhere"], "no such run"),
        (["eval", "{model}", "--data", "nowhere"], "no corpus here"),
        (["probe", "{model}", "--split", "val"], "no split 'val'"),
        (["zeroshot", "x.png", "--classes", ",", "--model", "{model}"], "names no class"),
        (["eval", "{model}", "--candidates", ","], "--candidates ,: names no class"),
        (["eval", "{model}", "--candidates", "umbrella"], "none of them is a class of the corpus"),
        (["eval", "{model}", "--devices", "cpu:no"], "--devices cpu:no"),
        (["compare", "{model}"], "compare: needs two models or more"),
        (["compare", "{model}", "{model}/"], "are the same model"),
        (["compare", *"abcdefghijklmnopqrstuvwxyzä"], "compare: takes at most 26 models, got 27"),
        (["eval", "{model}", "--html", "/proc/no/e.html"], "--html /proc/no/e.html: cannot be written"),
        (["eval", "{model}", "--predictions", "/proc/no/p.parquet"], "--predictions /proc/no/p.parquet: cannot be wri"),
        (["zeroshot", "--classes", "a"], "no images given"),
        (["zeroshot", "x.png", "--stdin-image"], "--stdin-image: cannot be combined with other inputs"),
        (["zeroshot", "-", "-", "--classes", "a"], "can be read only once"),
        (["zeroshot", "-", "--devices", "cpu:2", "--classes", "a"], "only one process can read standard input"),
        (["zeroshot", "x.png", "--json", "--csv"], "--json: cannot be combined with --csv"),
        (["zeroshot", "x.png", "--classes", "a", "--classes-from", "c", "--model", "{model}"], "both --classes and"),
        (["zeroshot", "x.png", "--classes-from", "nowhere", "--model", "{model}"], "no corpus here"),
    ],
)
def test_mistakes_are_one_line_with_a_hint(model, args, message):
    with pytest.raises(UniclError, match=message) as caught:
        run([arg.format(model=model) for arg in args])
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_classifier_head_is_evaluated_by_its_columns_and_a_feature_loss_only_probed(place, capsys):
    head = trained(place, "ce", "model.text=null", "loss=ce", "steps=40")
    assert json.loads(answer(capsys, "eval", head, "--json")[0])["data"][0]["top1"] > 0.6
    features = trained(place, "supcon", "model.text=null", "loss=supcon", "data.views=2", "steps=2")
    with pytest.raises(UniclError, match="nothing to evaluate") as caught:
        run(["eval", features])
    assert "unicl probe" in str(caught.value.hint)
    assert json.loads(answer(capsys, "probe", features, "--json")[0])["n"] == 15


def test_one_vector_a_class_with_a_bias_is_a_linear_classifier(place, capsys):
    changes = ("model.text={name: linear, bias: true}", "model.tokenizer=classes", 'data.templates=["{}"]')
    linear = trained(place, "linear", *changes, "model.context_length=null")
    assert json.loads(answer(capsys, "eval", linear, "--json")[0])["data"][0]["top1"] > 0.6
    image = str(place / "pictures" / "test" / "red" / "0.png")
    out, _ = answer(capsys, "zeroshot", image, "--classes", "green,red", "--model", linear, "--json")
    assert {item["label"] for item in json.loads(out)["top"]} == {"green", "red"}


def test_a_list_on_standard_input_is_answered_as_csv(model, place, capsys, monkeypatch):
    paths = [str(place / f"pictures/test/{name}/0.png") for name in ("red", "blue")]
    (place / "list.txt").write_text("\n".join(paths))
    with (place / "list.txt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        out, err = answer(
            capsys, "zeroshot", "-", "--classes-from", str(place / "corpus"), "--model", model, "--csv", "--top-k", "2"
        )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["path"], row["label"]) for row in rows] == list(zip(paths, ("red", "blue"), strict=True))
    assert err == ""


def test_an_empty_folder_is_named_as_such(model, place, capsys):
    (place / "empty").mkdir()
    with pytest.raises(UniclError, match="empty: a folder without images"):
        run(["zeroshot", str(place / "empty"), "--classes", "red,blue", "--model", model])
    assert capsys.readouterr().err == ""


def test_one_class_is_no_question_and_is_told(model, place, capsys):
    """The model knows red, green and blue; a test folder may hold one of them."""
    image = str(place / "pictures" / "test" / "red" / "0.png")
    assert (
        "one class: its probability is always 100 %"
        in answer(capsys, "zeroshot", image, "--classes", "red", "--model", model)[1]
    )
    alone = place / "alone" / "test" / "red"
    alone.mkdir(parents=True, exist_ok=True)
    (alone / "0.png").write_bytes(Path(image).read_bytes())
    assert main(["prepare", "--labels", str(place / "alone"), "-o", str(place / "alone-corpus"), "-q"]) == 0
    out, err = answer(capsys, "eval", model, "--data", str(place / "alone-corpus"))
    assert "1 + 2" in out
    assert "2 of 3 candidates are not classes of the corpus: blue, green" in err
    out, err = answer(capsys, "eval", model, "--data", str(place / "alone-corpus"), "--candidates", "corpus")
    assert "100.0" not in out
    assert "one candidate: every answer is right, so there is no accuracy" in err
    command = ("eval", model, "--data", str(place / "alone-corpus"), "--candidates", "red,blue", "--json")
    assert json.loads(answer(capsys, *command)[0])["data"][0]["candidates"] == {"total": 2, "not_in_corpus": 1}


def test_shots_are_asked_for_on_the_command_line(model, capsys):
    args = ("probe", model, "--shots", "1", "--shots", "2", "--seeds", "2", "--method", "knn")
    document = json.loads(answer(capsys, *args, "--json")[0])
    assert [(entry["shots"], len(entry["runs"])) for entry in document["few_shot"]] == [(1, 2), (2, 2)]
    assert "Nearest neighbours" in answer(capsys, *args)[0]


def process(*args: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "unicl_cli", *args]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return begin(command, **pipes, text=True, **options)


@pytest.mark.slow
def test_a_pipe_is_answered_line_by_line_and_ctrl_c_ends_it(model, place):
    with process("zeroshot", "-", "--classes", "red,blue", "--model", model) as child:
        for name in ("red", "blue", "red"):
            child.stdin.write(f"{place}/pictures/test/{name}/0.png\n")
            child.stdin.flush()
            assert f"\t{name} " in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr.read() == ""


@pytest.mark.slow
def test_a_reader_that_leaves_is_not_an_error(model, place):
    folder = str(place / "pictures" / "train")
    with process("zeroshot", *[folder] * 40, "--classes", "red,blue", "--model", model, "--batch", "1") as child:
        child.stdout.readline()
        child.stdout.close()
        child.wait(60)
        assert child.stderr.read() == ""


@pytest.mark.slow
def test_a_reader_that_leaves_two_processes_is_not_an_error(model, place):
    folder = str(place / "pictures" / "train")
    words = ("zeroshot", folder, "--batch", "1", "--classes", "red,blue", "--json", "--model", model)
    with process(*words, "--devices", "cpu:2", "-q") as child:
        assert json.loads(child.stdout.readline())
        child.stdout.close()
        assert child.wait(60) == 141
        assert child.stderr.read() == ""


def test_without_model_the_run_that_answers_is_named(model, place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "last").symlink_to(model)
    image = str(place / "pictures/test/red/0.png")
    _, err = answer(capsys, "zeroshot", image, "--classes", "red,blue")
    assert err == "model: runs/last (the run that finished last; --model takes another)\n"
    monkeypatch.setenv("UNICL_MODEL", model)
    _, err = answer(capsys, "zeroshot", image, "--classes", "red,blue")
    assert err == f"model: {model} (UNICL_MODEL; --model takes another)\n"
    assert answer(capsys, "zeroshot", image, "--classes", "red,blue", "-q")[1] == ""


def test_the_error_of_the_only_image_is_printed_once_on_a_terminal(model, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(UniclError, match="no such file"):
        run(["zeroshot", "gone.png", "--classes", "red", "--model", model])
    assert "gone.png" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_thousand_images_take_no_more_memory_than_thirty(model, place):
    folder = place / "many"
    folder.mkdir()
    for number in range(30):
        Image.effect_noise((400, 300), 50).save(folder / f"{number}.png")
    script = (
        "import resource, sys; from unicl_cli.cli import run; code = run(sys.argv[1:]); "
        "sys.stderr.write(f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}')"
    )
    peaks: list[int] = []
    for times in (1, 34):
        args = ["zeroshot", *[str(folder)] * times, "--classes", "red,blue", "--model", model, "--json", "-q"]
        done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == 30 * times
        peaks.append(int(done.stderr))
    assert peaks[1] - peaks[0] < 60_000  # KiB; the 1,020 files have 112,000


@pytest.mark.slow
def test_two_processes_print_what_one_prints(model, place, capsys):
    """`compare` evaluates each model as `eval` does."""
    images = [str(path) for path in sorted((place / "pictures" / "test").rglob("*.png"))]
    for args in (
        ("probe", model, "--json", "--batch", "4"),
        ("compare", model, trained(place, "short", "steps=2"), "--json", "--batch", "4"),
        (
            "zeroshot",
            *images,
            str(place / "gone.png"),
            "--classes",
            "red,blue",
            "--model",
            model,
            "--batch",
            "3",
            "--json",
        ),
    ):
        capsys.readouterr()
        code = main([*args, "--devices", "cpu:1"])
        two, out, err = ended(begun(*args, "--devices", "cpu:2"))
        assert out == capsys.readouterr().out != ""
        assert code == two == (2 if args[0] == "zeroshot" else 0)
        assert "Traceback" not in err


def test_predictions_hold_every_row_and_agree_with_the_figures(model, place, capsys):
    file = place / "new" / "predictions.parquet"
    document = json.loads(answer(capsys, "eval", model, "--json", "--predictions", str(file), "--batch", "4")[0])
    (entry,) = document["data"]
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == entry["n"] == sum(part["n"] for part in entry["reliability"])
    assert sum(row["correct"] for row in rows) / len(rows) == entry["top1"]
    for row in rows:
        assert row["correct"] == (row["top"][0] == row["y"])
        assert sorted(row["top"]) == [0, 1, 2]
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert 1 / 3 <= row["p_max"] <= 1
        assert sorted(COLOURS)[row["y"]] in row["key"]


def test_eval_writes_a_page_and_predictions_beside_its_tables(model, place, capsys):
    page, file = place / "new" / "e.html", place / "new" / "answers.csv"
    out, _ = answer(capsys, "eval", model, "--html", str(page), "--predictions", str(file))
    assert "Classification, %" in out
    assert "Recall per class, %" in page.read_text()
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert len(rows) == 15
    assert all(row["class"] in row["key"] and row["predicted"] in COLOURS for row in rows)
    assert all(row["predicted"] == sorted(COLOURS)[int(row["top_1"])] == row["top_classes_1"] for row in rows)


def test_compare_gives_each_model_the_figures_of_eval(model, place, capsys):
    other = trained(place, "short", "steps=2")
    page = place / "new" / "c.html"
    document = json.loads(answer(capsys, "compare", model, other, "--json", "--html", str(page))[0])
    assert (document["schema"], document["models"]) == ("unicl/compare/1", [model, other])
    assert {row["key"]: row["values"] for row in document["recipes"]} == {"steps": [30, 2]}
    (entry,) = document["data"]
    for row in entry["models"]:
        (alone,) = json.loads(answer(capsys, "eval", row["model"], "--json")[0])["data"]
        assert (row["n"], row["top1"], row["top1_interval"]) == (15, alone["top1"], alone["top1_interval"])
    assert "Comparison of 2 models" in page.read_text()
    out, _ = answer(capsys, "compare", model, other)
    assert "Difference from A, points" in out
    assert "A unicl" in out
    assert "B short" in out
