"""The classes that captions name: neither positives nor negatives of the rows of these classes, or labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, here
from toy_corpora import CLASSES, corpus, strands

from unicl_cli.build.caption_labels import naming_warnings
from unicl_cli.build.data import TrainingData, build_data, build_tokenizer
from unicl_cli.build.model import build_step
from unicl_cli.contracts import NO_LABEL, Batch, ClassName, Drawn
from unicl_cli.core.batch_columns import LABEL_SET, NAMED
from unicl_cli.core.label_sets import MOST_NAMED
from unicl_cli.data.caption_labels import CaptionLabels
from unicl_cli.data.mix import MixedCorpora, TextChoice
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.batches import stream_batches
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import dump, hashed_keys, recipe_hash

ANIMALS = (
    ClassName("dog", ("dog", "hound"), "kind"),
    ClassName("cat", ("cat",), "kind"),
    ClassName("red", ("red",), "colour"),
)


def drawn(text: str | None) -> Drawn:
    return Drawn(0, 0, 0, torch.zeros(1), NO_LABEL, text, 5, {}, known=0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two HOUNDS and a cat.", (0, 1)),
        ("a dogged category", ()),
        ("dog, dog and hound", (0,)),
        ("", ()),
        (None, ()),
    ],
)
def test_a_caption_names_each_class_once_and_by_whole_words(text, named):
    assert CaptionLabels(ANIMALS, (), labels=False).complete(drawn(text)).named == named


def test_a_caption_with_too_many_names_is_a_list_of_words():
    many = [ClassName(f"c{n}", (f"word{n}",)) for n in range(MOST_NAMED + 1)]
    words = [item.names[0] for item in many]
    naming = CaptionLabels(many, (), labels=False)
    assert len(naming.named_in(" ".join(words[:-1]))) == MOST_NAMED
    assert naming.named_in(" ".join(words)) == ()


def test_positive_makes_names_the_labels_of_the_row_with_the_classes_above_and_annotates_no_group():
    naming = CaptionLabels(ANIMALS, ([0, 1], [1], [2]), labels=True)
    row = naming.complete(drawn("a hound"))
    assert (row.labels, row.label, row.known, row.named) == ((0, 1), NO_LABEL, 0, ())
    row = naming.complete(drawn("a red thing"))
    assert (row.labels, row.label, row.known) == ((2,), 2, 0)
    assert naming.complete(drawn("nothing")) == drawn("nothing")._replace(image=naming.complete(drawn("nothing")).image)


def test_only_rows_without_a_label_are_read(tmp_path):
    """The label of a row is its annotation: what its caption names beside it changes nothing."""
    classes = (*CLASSES[:2], ClassName("n3", ("labelled", "other", "caption")))
    parts = strands(corpus(tmp_path / "c", classes=classes))
    mix = MixedCorpora(parts, TextChoice("caption", "first", 0, CaptionLabels(classes, (), labels=False)))
    seen = {strand.kind: {mix[number, row, 0, 0].named for row in range(6)} for number, strand in enumerate(parts)}
    assert seen == {"labels": {()}, "captions": {(2,)}}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with labels, and shapes with captions, which name the classes: a plain red circle."""
    folder = tmp_path_factory.mktemp("mix")
    for kind in ("labels", "captions"):
        here("prepare", f"--{kind}", "shapes?count=90&test=12&size=16", "--holdout", "0", "-q", "-o", folder / kind)
    return folder


def recipe(
    folder: Path, *, loss: Any = "unicl", kinds: Sequence[str] = ("labels", "captions"), **data: object
) -> Recipe:
    own = TINY["data"] | {"train": [{"corpus": str(folder / name)} for name in kinds]} | data
    return load_text(json.dumps(TINY | {"data": own, "loss": loss, "steps": 2, "batch": {"size": 90}}))


def first_batch(made: Recipe) -> tuple[Any, Batch, TrainingData]:
    data = build_data(made)
    tokenizer = build_tokenizer(made, data)
    step, _ = build_step(made, lambda: tokenizer, data.classes, 1, label_sets=data.label_sets)
    return step, next(stream_batches(made, data, tokenizer, step, 0, 1, 0))[1], data


def test_captions_hide_or_become_labels_in_the_batches_of_a_recipe(both):
    step, batch, data = first_batch(recipe(both))
    plain = step(batch)["loss"].item()
    assert batch.extra == {}
    alone = batch.labels == NO_LABEL
    assert alone.sum() == 45

    step, hidden, _ = first_batch(recipe(both, caption_labels="hide"))
    named = hidden.extra[NAMED]
    assert ((named[:, 0] != NO_LABEL) == alone).all(), "every caption of shapes names its class"
    assert (named[:, 1:] == NO_LABEL).all()
    names = {tuple(tokens) for tokens in hidden.tokens[hidden.text_index[alone]].tolist()}
    assert len(names) > 5
    assert abs(step(hidden)["loss"].item() - plain) > 1e-3

    step, positive, data = first_batch(recipe(both, caption_labels="positive"))
    assert data.label_sets is not None
    labels = positive.extra[LABEL_SET]
    assert torch.equal(labels[alone, 0], named[alone, 0])
    assert torch.equal(labels[~alone, 0], batch.labels[~alone])
    assert torch.equal(positive.labels, labels[:, 0]), "each caption names one class, so each row has one label"
    keys = step(positive._replace(extra={}))["loss"].item()
    assert step(positive)["loss"].item() == pytest.approx(keys, abs=1e-6), "one label per row: UniCL on keys"
    assert abs(keys - plain) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"caption_labels": "hide", "loss": "clip"}, "the loss 'clip' cannot hide captions", "use one of unicl"),
        (
            {"caption_labels": "positive", "loss": "clip"},
            "data.caption_labels=positive gives rows label sets",
            "use one",
        ),
        ({"caption_labels": "hide", "kinds": ["labels"]}, "the mix has no rows with captions alone", "add a corpus"),
        (
            {"caption_labels": "hide", "caption_targets": "text_hash"},
            "may be a positive of a row and hidden from it",
            "use unique, or set data.caption_labels=off",
        ),
    ],
)
def test_names_in_captions_are_refused_where_they_can_have_no_meaning(both, changes, message, hint):
    with pytest.raises(UniclError) as caught:
        build_data(recipe(both, **changes))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_captions_that_name_no_class_are_told(both):
    made = recipe(both, caption_labels="hide")
    data = build_data(made)
    assert naming_warnings(made, data.mix) == []
    strange = data.mix.texts._replace(naming=CaptionLabels([ClassName("q", ("quokka",))], (), labels=False))
    (told,) = naming_warnings(made, MixedCorpora(data.mix.strands, strange))
    assert told.startswith("data.caption_labels=hide: none of 90 captions tried names a class")


def test_a_recipe_that_gives_names_no_meaning_keeps_its_hash(both):
    assert "caption_labels" not in hashed_keys(recipe(both))["data"]
    assert len({recipe_hash(recipe(both, caption_labels=mode)) for mode in ("off", "hide", "positive")}) == 3


def test_a_run_with_labels_from_captions_is_trained_and_evaluated(both, tmp_path):
    """`positive` makes label sets, although the corpora have none: the run has to say so to those that read it."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe(both, caption_labels="positive")))
    here("train", file, "--run-dir", tmp_path / "run", "-q")
    assert json.loads((tmp_path / "run" / "classes.json").read_text())["most_labels"] == MOST_NAMED
    here("eval", tmp_path / "run", "--data", both / "labels", "-q")
