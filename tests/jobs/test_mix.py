"""`unicl mix`: the ends are the models themselves, the middle lies between, everything it writes loads again."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from unicl_cli.build.load import load_model
from unicl_cli.cli import main
from unicl_cli.commands.mix import parse_alphas
from unicl_cli.core import checkpoint
from unicl_cli.errors import UniclError
from unicl_cli.jobs.mix import check_pair, entry_score, interpolate, mix_models, mix_tables
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import dump

HALF = {"alphas": (0.5,), "data": None, "split": None, "batch": 64}


@pytest.fixture
def accelerator():
    return SimpleNamespace(device=torch.device("cpu"), autocast=torch.no_grad)


@pytest.fixture(scope="module")
def train(digits, tmp_path_factory):
    """``train(name, model, …)``: a finished run of two steps."""
    home = tmp_path_factory.mktemp("runs")

    def make(name, model, **changes):
        run = home / name
        if run.exists():
            return str(run)
        whole = {
            "data": {"train": [{"corpus": str(digits)}], "image_size": 64, "augment": "none"},
            "model": model,
            "batch": {"size": 12},
            "steps": 2,
            "optim": {"lr": 3e-3},
            "schedule": {"warmup": 0},
        }
        recipe = home / f"{name}.yaml"
        recipe.write_text(dump(load_text(json.dumps(whole | changes))))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["unicl"])
            assert main(["train", str(recipe), "--run-dir", str(run), "-q"]) == 0
        return str(run)

    return make


@pytest.fixture
def tuned(train, open_clip_folder, tmp_path, monkeypatch):
    """(OLD, NEW): a tiny model of open_clip, and a run that was fine-tuned from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unicl"])
    old = f"local-dir:{open_clip_folder('clip')}"
    return old, train("tuned", {"name": "open_clip", "arch": old})


@given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_a_mixed_weight_lies_between_the_two(old, new, alpha):
    a, b = torch.tensor([old]), torch.tensor([new])
    value = interpolate(a, b, alpha)
    assert value.dtype == torch.float32
    assert min(old, new) <= float(value) <= max(old, new)
    assert torch.equal(interpolate(a, b, 0), a)
    assert torch.equal(interpolate(a, b, 1), b)
    assert torch.equal(interpolate(a, a, alpha), a)
    count = torch.tensor([3])
    assert interpolate(count, count + 4, alpha).item() in (3, 7)


def test_the_ends_are_the_models_and_the_middle_is_their_mean(tuned, accelerator):
    both = check_pair(load_model(tuned[0]), load_model(tuned[1]))
    old, new = (checkpoint.weights(each.step) for each in (both.old, both.new))
    assert old.keys() == new.keys()
    assert any(not torch.equal(x, new[name]) for name, x in old.items())
    for alpha, expected in ((0.0, old), (1.0, new)):
        assert all(torch.equal(x, expected[name]) for name, x in both.interpolated(alpha).items())
    quarter = both.interpolated(0.25)
    for name, x in old.items():
        torch.testing.assert_close(quarter[name], 0.75 * x + 0.25 * new[name], atol=1e-7, rtol=1e-6, msg=name)
    logs = old["model.logit_scale"], new["model.logit_scale"]
    assert torch.allclose(quarter["model.logit_scale"], torch.lerp(*logs, 0.25)), "in log space"
    document = mix_models(tuned, **{**HALF, "alphas": (0.0,)}, out=Path("m"), accelerator=accelerator)
    assert document == {"schema": "unicl/mix/1", "old": tuned[0], "new": tuned[1], "alpha": 0.0, "out": "m"}
    written = checkpoint.weights(load_model("m").step)
    assert all(torch.equal(x, old[name]) for name, x in written.items())


def test_the_mixture_is_a_model_without_its_parents(tuned, accelerator, tmp_path, capsys):
    mix_models(tuned, **HALF, out=Path("half"), accelerator=accelerator)
    away = Path(tuned[1]).rename(f"{tuned[1]}-away")
    loaded = load_model("half")
    away.rename(tuned[1])
    assert loaded.classes == load_model(tuned[1]).classes
    assert loaded.transform.frame is not None
    meta = json.loads(Path("half/meta.json").read_text())
    assert meta["mixed"] == {"old": tuned[0], "new": tuned[1], "alpha": 0.5}
    assert main(["eval", "half", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["data"][0]["n"] > 0


def test_two_published_models_mix_into_open_clips_layout(open_clip_folder, accelerator, tmp_path):
    import open_clip

    old = open_clip_folder("siglip")
    new = Path(shutil.copytree(old, tmp_path / "new"))
    tensors = load_file(Path(old) / "open_clip_model.safetensors")  # mapped: the file of `new` is about to change
    save_file({name: x + 0.01 for name, x in tensors.items()}, new / "open_clip_model.safetensors")
    out = tmp_path / "mixed"
    mix_models((f"local-dir:{old}", f"local-dir:{new}"), **HALF, out=out, accelerator=accelerator)
    model = open_clip.create_model(f"local-dir:{out}").eval()
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, tensors[name] + 0.005, atol=1e-6, rtol=1e-6, msg=name)
    loaded = load_model(f"local-dir:{out}")
    assert loaded.step.loss.activation == "sigmoid"
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(loaded.step.model.image(pixels)[1], model.encode_image(pixels), atol=1e-6)


@pytest.fixture
def at_size(digits):
    """``at_size(96)``: the data of `train` at another image size."""
    return lambda size: {"data": {"train": [{"corpus": str(digits)}], "image_size": size, "augment": "none"}}


def test_a_backbone_that_open_clip_cannot_build_stays_a_run_and_is_told(train, open_clip_folder, accelerator, tmp_path):
    old = f"local-dir:{open_clip_folder('siglip')}"
    run = train("small-siglip", {"name": "open_clip", "arch": old})
    document = mix_models((old, run), **{**HALF, "alphas": (1.0,)}, out=tmp_path / "out", accelerator=accelerator)
    assert "not in open_clip's layout" in document["warnings"][-1]
    assert not (tmp_path / "out" / "open_clip_config.json").exists()
    assert load_model(str(tmp_path / "out")).transform.size == (64, 64)


@pytest.mark.parametrize("kind", ["clip", "siglip", "timm", "hf"])
def test_a_run_of_open_clip_goes_back_to_open_clip(train, open_clip_folder, at_size, accelerator, tmp_path, kind):
    import open_clip

    old = f"local-dir:{open_clip_folder(kind)}"
    run = train(f"back-{kind}", {"name": "open_clip", "arch": old}, **(at_size(160) if kind == "siglip" else {}))
    out = tmp_path / "out"
    mix_models((old, run), **{**HALF, "alphas": (1.0,)}, out=out, accelerator=accelerator)
    ours = load_model(run)
    for name in (str(out), f"local-dir:{out}"):
        again = load_model(name)
        assert again.classes == ours.classes, "published, it still knows its classes"
        assert all(
            torch.equal(x, again.step.model.state_dict()[key]) for key, x in ours.step.model.state_dict().items()
        )
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    model.eval()
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    texts = ["a photo of a cat", "dog"]
    with torch.no_grad():
        theirs = model.encode_image(transform(image)[None], normalize=True)
        mine = ours.step.model.encode_image(ours.transform(file.getvalue())[None]).embed
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        theirs = model.encode_text(open_clip.get_tokenizer(f"local-dir:{out}")(texts), normalize=True)
        torch.testing.assert_close(
            ours.step.model.encode_text(ours.tokenizer(texts)).embed, theirs, atol=1e-5, rtol=1e-5
        )
        assert model.logit_scale.exp() == pytest.approx(float(ours.step.model.scale()), abs=1e-4)


def test_positions_of_the_old_model_are_interpolated_as_the_training_did(train, open_clip_folder, tmp_path, capsys):
    old = f"local-dir:{open_clip_folder('clip')}"
    untrained = {"data": {"train": [{"corpus": "c"}], "image_size": 96, "augment": "none"}, "optim": {"lr": 1e-12}}
    untrained["data"]["train"][0]["corpus"] = next(
        iter(load_model(train("tuned", {"name": "open_clip", "arch": old})).corpora)
    )
    run = train("larger", {"name": "open_clip", "arch": old}, **untrained)
    assert load_model(run).transform.size != load_model(old).transform.size
    out = tmp_path / "out"
    assert main(["mix", old, run, "--alpha", "0", "-o", str(out), "-q"]) == 0
    assert "its positions are interpolated from" in capsys.readouterr().err
    mixed, larger = (checkpoint.weights(load_model(str(each)).step) for each in (out, run))
    for name, x in mixed.items():
        torch.testing.assert_close(x, larger[name], atol=1e-6, rtol=1e-6, msg=name)


def test_the_curve_has_a_point_for_each_alpha_and_marks_the_best(tuned, digits, capsys):
    command = ["mix", *tuned, "--alpha", "1,0,0.5", "--data", str(digits), "-q"]
    assert main([*command, "--json", "-o", "best"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "unicl/mix/1"
    points = document["curve"]
    assert [point["alpha"] for point in points] == [0, 0.5, 1]
    assert points[0]["data"][0].keys() == {"name", "split", "top1", "text_to_image_r1", "image_to_text_r1"}
    assert document["alpha"] == max(points, key=lambda point: point["mean"])["alpha"]
    assert document["warnings"] == [
        f"{digits.name}: alpha was chosen on the test split, so the result there is optimistic"
    ]
    assert json.loads(Path("best/meta.json").read_text())["mixed"]["alpha"] == document["alpha"]
    assert main(["eval", tuned[1], "--json", "-q"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["data"]
    assert points[-1]["data"][0]["top1"] == measured["top1"]
    (table,) = mix_tables(document)
    assert [column.header for column in table.columns] == [
        *("alpha", "top-1", "text to image R@1", "image to text R@1", "mean", "best")
    ]
    assert [cell == "*" for cell in table.columns[-1].cells] == [p["alpha"] == document["alpha"] for p in points]


def test_heads_are_whole_at_eighty_columns_however_many_data_sets_there_are():
    figures = {"top1": 0.5, "text_to_image_r1": 0.25, "image_to_text_r1": 1.0}
    data = [{"name": f"a long name of a corpus {n}", "split": "val", **figures} for n in range(3)]
    curve = [{"alpha": alpha, "data": data, "mean": 0.5} for alpha in (0.0, 1.0)]
    tables = list(mix_tables({"old": "runs/first", "new": "runs/tuned", "alpha": 1.0, "curve": curve}))
    assert len(tables) == 4
    console = Console(width=80, file=io.StringIO())
    for table in tables:
        console.print(table)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert shown.count("text to image R@1") == 3
    assert max(map(len, shown.splitlines())) <= 80


def test_recall_counts_where_there_are_no_labels():
    assert entry_score({"name": "c", "top1": 0.5, "text_to_image_r1": 0.1, "image_to_text_r1": 0.1}) == 0.5
    assert entry_score({"name": "c", "text_to_image_r1": 0.1, "image_to_text_r1": 0.3}) == pytest.approx(0.2)


CNN = {"image": {"name": "cnn", "width": 8, "stages": 2}, "embed_dim": 16, "tokenizer": "corpus", "context_length": 16}
TEXT = {"name": "transformer", "width": 16, "layers": 1, "heads": 2}


def test_models_of_our_own_mix_with_their_heads(train, accelerator, tmp_path):
    own = {**CNN, "text": TEXT}
    old = train("old", own, loss={"name": "multitask"})
    new = train("new", own, loss={"name": "multitask"}, steps=3)
    half = tmp_path / "half"
    mix_models((old, new), **HALF, out=half, accelerator=accelerator)
    heads = [checkpoint.read_tensors(Path(each) / "model.safetensors")["loss.head.weight"] for each in (old, new, half)]
    assert torch.allclose(heads[2], (heads[0] + heads[1]) / 2)


def test_different_models_are_refused(train, open_clip_folder, tuned):
    old = train("own", {**CNN, "text": TEXT})
    for name, model, message in (
        ("deeper", {**CNN, "text": {**TEXT, "layers": 2}}, r"different models: \d+ tensors are only in .*deeper"),
        ("wider", {**CNN, "text": {**TEXT, "width": 32}}, r"is \(.*\) in .*, so the models differ"),
        (
            "heads",
            {**CNN, "text": {**TEXT, "heads": 4}},
            r"different models: text\.heads differ",
        ),
    ):
        with pytest.raises(UniclError, match=message):
            check_pair(load_model(old), load_model(train(name, model)))
    swapped = Path(shutil.copytree(old, "swapped"))
    words = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["b"], vocabulary["c"] = vocabulary["c"], vocabulary["b"]
    (swapped / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UniclError, match="have different tokens"):
        check_pair(load_model(old), load_model("swapped"))
    quick = f"local-dir:{open_clip_folder('custom')}"
    with pytest.raises(UniclError, match="different models: quick_gelu differ"):
        check_pair(load_model(quick), load_model(tuned[1]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "2", "-o", "x"], "--alpha 2: outside of 0 to 1"),
        (["--alpha", "half", "-o", "x"], "--alpha half: not a list of numbers"),
        (["--alpha", "0.5", "--curve"], "--curve: cannot be combined with --alpha"),
        ([], "nothing to do"),
        (["-o", "full"], "full: contains other files (file)"),
        (["--alpha", ",", "-o", "x"], "outside of 0 to 1"),
        (["--alpha", "nan", "-o", "x"], "outside of 0 to 1"),
    ],
)
def test_a_wrong_command_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "full"):
        Path(name).mkdir()
    Path("full/file").touch()
    assert main(["mix", "a", "b", *words]) == 2
    assert message in capsys.readouterr().err


def test_shares_are_sorted_and_each_once():
    assert parse_alphas("1, 0,0.5,1", curve=False) == (0, 0.5, 1)
    assert parse_alphas(None, curve=False) == (0.5,)
    assert len(parse_alphas(None, curve=True)) == 11
