"""Options of texts and classes that are off by default, from the recipe to the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, here
from safetensors.torch import load_file

from unicl_cli.build.data import build_data, build_tokenizer, check_learnable
from unicl_cli.build.load import load_model
from unicl_cli.build.model import build_step
from unicl_cli.cli import main
from unicl_cli.contracts import ClassName
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.scorer import make_scorer
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import hashed_keys


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for kind, name, more in (
        ("labels", "labels", ""),
        ("captions", "captions", ""),
        ("labels", "both", "&captions=true"),
    ):
        source = f"shapes?count=48&test=12&size=16{more}"
        here("prepare", f"--{kind}", source, "--holdout", "0", "-q", "-o", folder / name)
    return folder


def recipe(folder: Path, *kinds: str, **changes: Any) -> str:
    data = TINY["data"] | {"train": [{"corpus": str(folder / kind)} for kind in kinds]} | changes.pop("data", {})
    return json.dumps(TINY | {"data": data, "loss": "unicl", "steps": 2} | changes)


def losses_of(text: str, run: Path) -> list[float]:
    file = run.with_suffix(".yaml")
    file.write_text(text)
    here("train", file, "--run-dir", run, "-q")
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


COLUMNS = {"name": "unicl", "class_columns": {}}


def test_class_columns_make_the_choice_of_each_image_wider(corpora, tmp_path):
    plain = losses_of(recipe(corpora, "labels", "captions"), tmp_path / "plain")
    wider = losses_of(recipe(corpora, "labels", "captions", loss=COLUMNS), tmp_path / "wider")
    assert wider[0] > plain[0] + 0.1, "48 candidates more"
    here("eval", tmp_path / "wider", "--data", corpora / "labels", "-q")


def fails(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    capsys.readouterr()
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run"), "-q"]) == 2
    return capsys.readouterr().err


def test_class_columns_without_an_image_term_or_a_place_for_the_name_are_refused(corpora, tmp_path, capsys):
    text_only = recipe(corpora, "labels", loss=COLUMNS | {"terms": ["text"]})
    assert "loss.class_columns: has no effect without the term image" in fails(text_only, tmp_path, capsys)
    nameless = recipe(corpora, "labels", loss={"name": "unicl", "class_columns": {"template": "a photo"}})
    assert "template 'a photo': has no place for the class name" in fails(nameless, tmp_path, capsys)


ADJUSTED = {"name": "unicl", "logit_adjustment": 1.0}


def test_logit_adjustment_reads_the_shares_of_the_training_rows(corpora, tmp_path, capsys):
    made = load_text(recipe(corpora, "labels", "captions", loss=ADJUSTED))
    data = build_data(made)
    step, _ = build_step(made, lambda: build_tokenizer(made, data), data.classes, 1, **data.facts)
    labels = next(s for s in data.mix.strands if s.kind == "labels").row_labels().tolist()
    counts = [labels.count(label) for label in range(len(data.classes))]
    assert data.facts["class_counts"]() == counts
    shares = [max(1, count) / 48 for count in counts]
    assert step.loss.priors.exp().tolist() == pytest.approx([share / sum(shares) for share in shares])
    plain = losses_of(recipe(corpora, "labels"), tmp_path / "plain")
    assert losses_of(recipe(corpora, "labels", loss=ADJUSTED), tmp_path / "adjusted") != plain
    here("eval", tmp_path / "adjusted", "--data", corpora / "labels", "-q")
    balanced = recipe(corpora, "labels", loss=ADJUSTED, data={"balance": 0.5})
    assert "loss.logit_adjustment: data.balance makes up for rare classes, too" in fails(balanced, tmp_path, capsys)
    assert "no row of data.train has a label" in fails(recipe(corpora, "captions", loss=ADJUSTED), tmp_path, capsys)


def test_options_at_their_defaults_are_not_part_of_a_recipes_hash(corpora):
    plain = hashed_keys(load_text(recipe(corpora, "labels")))["loss"]
    assert "class_columns" not in plain
    assert "logit_adjustment" not in plain
    assert hashed_keys(load_text(recipe(corpora, "labels", loss=COLUMNS)))["loss"]["class_columns"]
    assert "prefix" not in hashed_keys(load_text(recipe(corpora, "labels")))["model"]["text"]
    assert "heads" not in hashed_keys(load_text(recipe(corpora, "labels")))["model"]
    made = load_text(recipe(corpora, "labels", model=PREFIX | {"heads": "kind"}))
    assert hashed_keys(made)["model"]["heads"] == "kind"
    assert hashed_keys(made)["model"]["text"]["prefix"] == "kind"


PREFIX = TINY["model"] | {"text": TINY["model"]["text"] | {"prefix": "kind"}}


def test_a_prefix_is_trained_for_prompts_alone_and_left_out_at_test_time(corpora, tmp_path, capsys):
    starts = {}
    for kinds in (("labels", "captions"), ("captions",)):
        run = tmp_path / "-".join(kinds)
        losses_of(recipe(corpora, *kinds, model=PREFIX, optim={"name": "sgd", "lr": 1.0, "weight_decay": 0}), run)
        made = load_text(recipe(corpora, *kinds, model=PREFIX))
        data = build_data(made)
        fresh, _ = build_step(made, lambda d=data, m=made: build_tokenizer(m, d), data.classes, 1)
        tables = (fresh.state_dict(), load_file(run / "model.safetensors"))
        before, after = (weights["model.text.trunk.tok.weight"][-1] for weights in tables)
        starts[kinds] = torch.equal(before, after)
    assert starts == {("labels", "captions"): False, ("captions",): True}
    here("eval", tmp_path / "labels-captions", "--data", corpora / "labels", "-q")
    bag = {"name": "cbow", "width": 16, "prefix": "kind"}
    assert "model.text.prefix" in fails(
        recipe(corpora, "labels", model=TINY["model"] | {"text": bag}), tmp_path, capsys
    )


HEADS = TINY["model"] | {"heads": "kind"}


def test_heads_learn_both_and_classes_are_read_with_that_of_prompts(corpora, tmp_path):
    made = load_text(recipe(corpora, "labels", "captions", model=HEADS))
    plain = {"name": "sgd", "lr": 1.0, "weight_decay": 0}  # without a gradient a weight stays
    losses_of(recipe(corpora, "labels", "captions", model=HEADS, optim=plain), tmp_path / "run")
    loaded, data = load_model(str(tmp_path / "run")), build_data(made)
    fresh, _ = build_step(made, lambda: build_tokenizer(made, data), data.classes, 1)
    halves = zip(*(x.model.image.proj.weight.chunk(2) for x in (fresh, loaded.step)), strict=True)
    assert not any(torch.equal(before, after) for before, after in halves)
    scorer = make_scorer(Encoder(loaded), [ClassName("a", ("red star",))])
    images = scorer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    prompts, captions = (images * half for half in torch.eye(2).repeat_interleave(images.shape[1] // 2, 1))
    text = Encoder(loaded).encode_texts(["a red star"], batch=1, label="")
    assert [bool(scorer.classify(half, slice(None))) for half in (prompts, captions)] == [True, False]
    assert [bool(half @ text.T) for half in (prompts, captions)] == [False, True]
    here("eval", tmp_path / "run", "--data", corpora / "labels", "-q")


@pytest.mark.parametrize(
    ("kinds", "changes", "lacks"),
    [
        (("labels",), {}, "a projection for captions"),
        (("captions",), {}, "a projection for prompts of classes"),
        (("labels", "captions"), {"mix": {"labels": 1}}, "a projection for captions"),
        (("both",), {"text_for_labelled": "prompt"}, "a projection for captions"),
        (("both",), {"text_for_labelled": "caption"}, "a projection for prompts of classes"),
    ],
)
def test_heads_need_prompts_and_captions(corpora, tmp_path, capsys, kinds, changes, lacks):
    text = recipe(corpora, *kinds, model=HEADS, data=changes)
    assert f"model.heads: images have {lacks}, and no row of data.train shows any" in fails(text, tmp_path, capsys)


@pytest.mark.parametrize(("kinds", "choice"), [(("both",), "mixed"), (("both", "labels"), "caption")])
def test_rows_with_labels_can_show_both_kinds(corpora, kinds, choice):
    made = load_text(recipe(corpora, *kinds, model=HEADS, data={"text_for_labelled": choice}))
    check_learnable(made, build_data(made))


def test_class_columns_are_prompts_and_begin_like_them(corpora):
    made = load_text(recipe(corpora, "labels", model=PREFIX, loss=COLUMNS))
    data = build_data(made)
    tokenizer = build_tokenizer(made, data)
    step, _ = build_step(made, lambda: tokenizer, data.classes, 1)
    assert set(step.loss.class_tokens[:, 0].tolist()) == {tokenizer.vocab_size}
    made = load_text(recipe(corpora, "labels", model=PREFIX | {"heads": "kind"}, loss=COLUMNS))
    step, _ = build_step(made, lambda: tokenizer, data.classes, 1)
    assert set(step.loss.class_tokens[:, 0].tolist()) == {~tokenizer.vocab_size}
