"""Recipe to data: corpora, classes, transforms, the order of samples, the tokenizer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unicl_cli.binding import takes
from unicl_cli.build.caption_labels import build_naming, check_loss, merge_above
from unicl_cli.build.order import build_order
from unicl_cli.contracts import MOST_GROUPS, ClassName, LabelSets
from unicl_cli.core.class_groups import ancestors_of, describe_place, groups_of, label_sets_of
from unicl_cli.core.label_sets import MOST_NAMED
from unicl_cli.core.prompts import load_templates
from unicl_cli.core.sampler import Order
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.mix import (
    CAPTIONS,
    LABELS,
    ClassPlace,
    MixedCorpora,
    Strand,
    TextChoice,
    classes_with_rows,
    strands_of,
)
from unicl_cli.data.tokenizers import TextTokenizer, class_tokenizer, clip_tokenizer, corpus_tokenizer, load_tokenizer
from unicl_cli.data.transforms import Augmentation, TrainTransform, build_augment, split_augment
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of
from unicl_cli.recipe.schema import MAX_STEPS, Recipe, TrainData
from unicl_cli.tower_contracts import Tokenizer

TRIED_ROWS = 100
"""Rows of each kind of a corpus whose texts are tried before a training."""

HAS_TOWER = "the model has a text tower"
"""The clause that says why images without texts teach nothing."""


class TrainingData(NamedTuple):
    """The corpora of a recipe as one mix. ``templates`` are those of the first corpus with classes, for evaluation.

    ``label_sets`` is None if each labelled row has one label, and classes have no groups. ``shows_captions``: rows with
    a label may show captions of their own. ``encoded`` (rows of the mix, …) is what a frozen image tower gives for each
    row's image, on the host; None: images are encoded at each step.
    """

    mix: MixedCorpora
    order: Order
    classes: tuple[ClassName, ...]
    templates: tuple[str, ...]
    checksums: dict[str, str]
    device_augment: DeviceAugment | None
    label_sets: LabelSets | None
    shows_captions: bool
    encoded: Tensor | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Everything about the data that `build_step` takes, by name."""

        def count_classes() -> list[int]:
            counts = [strand.count_classes(len(self.classes)) for strand in self.mix.strands]
            return np.sum(counts, 0).tolist()

        facts = {"label_sets": self.label_sets, "shows_captions": self.shows_captions}
        return {**facts, "class_counts": count_classes}


def merged_classes(corpora: Sequence[Corpus]) -> tuple[tuple[ClassName, ...], list[NDArray[np.int64]]]:
    """Return the union of all corpora's classes in order, and for each corpus its class -> class of the union.

    UniclError for a class in two groups, whose rows in one corpus would not know it in the other, and for too many
    groups.
    """
    union: dict[str, int] = {}
    classes: list[ClassName] = []
    maps: list[NDArray[np.int64]] = []
    for corpus in corpora:
        for item in corpus.classes:
            number = union.setdefault(item.key, len(classes))
            if number == len(classes):
                classes.append(item)
            elif (item.group, item.parent) != (classes[number].group, classes[number].parent):
                raise UniclError(
                    f"{corpus.path}: class '{item.key}' is in {describe_place(item)}, and in an earlier corpus in "
                    f"{describe_place(classes[number])}",
                    "prepare both with the same groups (for lists by ?group=NAME) or one --taxonomy, or give the two "
                    "classes different names with ?classes=FILE",
                )
        maps.append(np.array([union[item.key] for item in corpus.classes], np.int64))
    if (count := len(groups_of(classes))) > MOST_GROUPS:
        raise UniclError(
            f"data.train: the corpora have {count} groups of classes together; the limit is {MOST_GROUPS}",
            "train on fewer corpora, or prepare them with fewer groups",
        )
    return tuple(classes), maps


def place_classes(
    corpora: Sequence[Corpus],
    classes: Sequence[ClassName],
    maps: Sequence[NDArray[np.int64]],
    *,
    ancestors: bool,
    named: int,
) -> tuple[list[ClassPlace], LabelSets | None]:
    """Return the place of each corpus's classes among those of the mix, and the label sets of the mix.

    ``named`` is the most classes that a caption adds to its row; they are labels if it is above 0.
    """
    bits = {name: 1 << number for number, name in enumerate(groups_of(classes))}
    places: list[ClassPlace] = []
    width = 1
    for corpus, labels in zip(corpora, maps, strict=True):
        above = ancestors_of(corpus.classes) if ancestors and any(c.parent for c in corpus.classes) else ()
        places.append(ClassPlace(labels, above, tuple(bits[name] for name in groups_of(corpus.classes))))
        deepest = max(map(len, above), default=1)
        width = max(width, min(corpus.manifest.most_labels * deepest, max(1, len(corpus.classes))))
        width = max(width, min(named * deepest, len(classes)))
    if not named and not any(corpus.manifest.has_sets for corpus in corpora):
        return places, None
    said = set[int]().union(*merge_above(places, len(classes)))
    silent = tuple(number for number in range(len(classes)) if number not in said)
    return places, label_sets_of(classes, width)._replace(silent=silent)


def check_sets(recipe: Recipe, label_sets: LabelSets | None, *, stored: bool) -> None:
    """Raise UniclError if the recipe's rows have label sets, and its loss takes one label per row.

    ``stored``: the corpora have them; else they are the classes that captions name.
    """
    if label_sets is not None:
        why = "rows of data.train have" if stored else "data.caption_labels=positive gives rows"
        check_loss(recipe, "label_sets", f"loss: '{recipe.loss.name}' takes one label per row, but {why} label sets")


def check_class_order(recipe: Recipe, *, has_sets: bool) -> None:
    """Raise UniclError for an order that draws rows by their class, where rows have sets or the loss does as much."""
    for key, off in (("balance", "0"), ("rows_per_class", "null")):
        if not getattr(recipe.data, key):
            continue
        if has_sets:
            raise UniclError(
                f"data.{key}: draws rows by their one label, and rows of data.train have label sets",
                f"set data.{key}={off}",
            )
        if recipe.loss.options.get("logit_adjustment"):
            raise UniclError(
                f"loss.logit_adjustment: data.{key} makes up for rare classes, too",
                f"set data.{key}={off}, or loss.logit_adjustment=0",
            )


def templates_of(corpus: Corpus, *specs: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the first template list that is given, else the corpus's own."""
    return load_templates(next((spec for spec in specs if spec is not None), corpus.templates))


def augments_of(recipe: Recipe, item: TrainData) -> list[Augmentation]:
    """Return the augmentation of a corpus's images, view by view: one entry for all views, or one per view."""
    entries = recipe.data.augment if item.augment is None else item.augment
    if len(entries) not in (1, recipe.data.views):
        raise UniclError(
            f"data.augment has {len(entries)} entries for {recipe.data.views} views",
            "give one entry, or one per view (data.views)",
        )
    ops = [build_augment(entry.name, entry.model_dump(exclude={"name"})) for entry in entries]
    return ops * (recipe.data.views // len(ops))


def train_transform_of(recipe: Recipe, item: TrainData) -> TrainTransform:
    """Return the transform that the loader applies to a corpus's images."""
    data, ops = recipe.data, augments_of(recipe, item)
    if data.augment_on == "device":
        ops = [split_augment(op)[0] for op in ops]
    return TrainTransform(data.image_size, ops, recipe.seed, decoder=data.decoder, resize=data.resize)


def device_augment_of(recipe: Recipe) -> DeviceAugment | None:
    """Return the augmentation that the device applies to a batch's images; None if the loader does it all."""
    if recipe.data.augment_on == "loader":
        return None
    each = [[split_augment(op)[1] for op in augments_of(recipe, item)] for item in recipe.data.train]
    if any(ops != each[0] for ops in each):
        raise UniclError(
            "data.augment_on=device needs the same augmentation for every corpus (crop and rand may differ)",
            "remove augment from data.train, or set data.augment_on=loader",
        )
    return DeviceAugment(each[0], recipe.seed)


def build_data(recipe: Recipe) -> TrainingData:
    """Open every corpus of the recipe; reads only manifests and, for shares of a corpus, keys."""
    corpora = [open_corpus(item.corpus) for item in recipe.data.train]
    classes, maps = merged_classes(corpora)
    places, label_sets = place_classes(
        corpora,
        classes,
        maps,
        ancestors=recipe.data.ancestors,
        named=MOST_NAMED if recipe.data.caption_labels == "positive" else 0,
    )
    stored = any(corpus.manifest.has_sets for corpus in corpora)
    check_sets(recipe, label_sets, stored=stored)
    check_class_order(recipe, has_sets=stored)
    strands: list[Strand] = []
    for number, (item, corpus, place) in enumerate(zip(recipe.data.train, corpora, places, strict=True)):
        if item.split not in corpus.splits:
            raise UniclError(f"{item.corpus}: has no split '{item.split}'", f"use one of {', '.join(corpus.splits)}")
        own = strands_of(
            corpus,
            item.split,
            place=place,
            templates=templates_of(corpus, item.templates, recipe.data.templates),
            transform=train_transform_of(recipe, item),
            weight=item.weight,
            fraction=1.0 if item.fraction is None else item.fraction,
            limit=item.limit,
        )
        check_kinds(recipe, number, corpus, own)
        strands += own
    strands = drop_unmixed(strands, recipe)
    naming = build_naming(recipe, strands, classes, places)
    texts = TextChoice(recipe.data.text_for_labelled, recipe.data.class_names, recipe.seed, naming)
    order = build_order(recipe, strands)
    named = [(item, corpus) for item, corpus in zip(recipe.data.train, corpora, strict=True) if corpus.classes]
    first = named[0] if named else (recipe.data.train[0], corpora[0])
    templates = templates_of(first[1], first[0].templates, recipe.data.templates)
    checksums = {item.corpus: corpus.checksum for item, corpus in zip(recipe.data.train, corpora, strict=True)}
    mix, augment = MixedCorpora(strands, texts), device_augment_of(recipe)
    captions = shows_captions(recipe, strands)
    return TrainingData(mix, order, classes, templates, checksums, augment, label_sets, captions)


def shows_captions(recipe: Recipe, strands: Sequence[Strand]) -> bool:
    """Return whether rows with a label may show captions; those that captions themselves give a label always do."""
    if recipe.data.caption_labels == "positive":
        return True
    if recipe.data.text_for_labelled == "prompt":
        return False
    return any(strand.kind == LABELS and strand.has_texts() for strand in strands)


def is_mixed(kind: str, share: float | str) -> bool:
    """Return True unless the share of label rows leaves this kind of row out on purpose."""
    return share != (0 if kind == LABELS else 1)


def check_kinds(recipe: Recipe, number: int, corpus: Corpus, strands: Sequence[Strand]) -> None:
    """Raise UniclError if ``fraction`` leaves no row of a kind that entry ``number`` of `data.train` has."""
    item = recipe.data.train[number]
    for kind in corpus.kinds(item.split):
        rows = len(corpus.table(item.split, kind))
        if rows and is_mixed(kind, recipe.data.mix.labels) and all(s.kind != kind for s in strands):
            without = 0 if kind == LABELS else 1
            raise UniclError(
                f"data.train.{number}.fraction: {item.fraction:g} of {count_of(rows, f'{kind} row')} of {item.corpus} "
                "leaves none",
                f"use a larger fraction or limit, or set data.mix.labels={without} to train without them",
            )


def drop_unmixed(strands: list[Strand], recipe: Recipe) -> list[Strand]:
    """Return the strands without the kinds of which the mix takes nothing.

    Raises UniclError if none is left, or if only one kind is there for a mix that asks for shares of both.
    """
    share = recipe.data.mix.labels
    kept = [s for s in strands if is_mixed(s.kind, share)]
    lonely = share != "auto" and 0 < share < 1 and len({s.kind == LABELS for s in kept}) == 1
    if not kept or lonely:
        kinds = sorted({s.kind for s in strands}) or ["nothing"]
        hint = "set data.mix.labels=auto, or add a corpus of the other kind"
        if share == 0:
            hint += "; for the captions of rows that have a label too: loss=clip data.text_for_labelled=caption"
        raise UniclError(f"data.mix.labels is {share:g}, but the corpora hold only {' and '.join(kinds)}", hint)
    return kept


def check_learnable(recipe: Recipe, data: TrainingData) -> None:
    """Raise UniclError for data that cannot teach anything: steps without a negative, or no texts for a text tower."""
    strands = data.mix.strands
    labels = [s for s in strands if s.kind == LABELS]
    is_alone = len(labels) == len(strands) or recipe.data.mix.by == "step"
    met = classes_with_rows(labels)
    if labels and is_alone and len(met) == 1 and all(strand.all_labelled() for strand in labels):
        which = "corpora have" if len(labels) == len(strands) else "steps of labels (data.mix.by=step) have"
        raise UniclError(
            f"data.train: the {which} one class and nothing else: there is nothing to tell apart",
            "add a second class, or captions: unicl prepare --labels … --captions …",
        )
    if sum(s.size for s in strands) == 1:
        raise UniclError("data.train: one row in all: there is nothing to tell apart", "add more rows")
    if recipe.loss.name == "ce" and not met:
        raise UniclError(
            "data.train: the loss ce learns from labels, and no row of the mix has one",
            "use another loss, set data.mix.labels=auto, or add a corpus with labels",
        )
    reader = reader_of(recipe)
    if reader is not None and any(s.kind == "images" and not s.table.stores_media for s in data.mix.strands):
        raise images_alone(reader)
    check_heads(recipe, data)


def check_heads(recipe: Recipe, data: TrainingData) -> None:
    """Raise UniclError if images have a projection for a kind of text that no row shows: it would learn nothing."""
    if recipe.model.part.options.get("heads") != "kind":
        return
    strands, shows_prompts = data.mix.strands, recipe.data.text_for_labelled != "caption"
    prompts = any(s.kind == LABELS and (shows_prompts or s.has_texts(lacking=True)) for s in strands)
    if not (prompts and (data.shows_captions or any(s.kind == CAPTIONS for s in strands))):
        kind = "captions" if prompts else "prompts of classes"
        problem = f"model.heads: images have a projection for {kind}, and no row of data.train shows any"
        raise UniclError(problem, "remove model.heads, or train on rows with labels and rows with captions")


def reader_of(recipe: Recipe) -> str | None:
    """Return what of a recipe reads texts, as a clause; None if nothing does."""
    if recipe.model.name == "open_clip" or recipe.model.part.options.get("text") is not None:
        return HAS_TOWER
    return f"the loss {recipe.loss.name} reads texts" if takes("losses", recipe.loss.name, "vocab_size") else None


def images_alone(reader: str) -> UniclError:
    """Return the error for images that a model with a text tower, or a loss that reads texts, learns nothing from."""
    return UniclError(
        f"data.train: a corpus holds images without label or text, but {reader}",
        "set model.text=null and a loss without texts, or prepare the images with labels or captions",
    )


def total_steps(recipe: Recipe, data: TrainingData) -> int:
    """Return the updates of the whole run; an epoch is one pass over the strand that takes longest."""
    if recipe.steps is not None:
        return recipe.steps
    steps = recipe.samples / recipe.batch.size if recipe.samples is not None else count_epochs(recipe, data)
    if steps > MAX_STEPS:
        raise UniclError(f"the recipe has {steps:.3g} steps; the limit is {MAX_STEPS:,}", "lower epochs or samples")
    return math.ceil(steps)


def count_epochs(recipe: Recipe, data: TrainingData) -> float:
    """Return the updates of `epochs` passes over the strand that takes longest."""
    return float((recipe.epochs or 1) * data.order.epoch_steps())


def build_tokenizer(recipe: Recipe, data: TrainingData) -> TextTokenizer:
    """Build the recipe's tokenizer: ``corpus`` (fitted on the mix), ``clip``, ``classes`` or a file."""
    name = recipe.model.tokenizer or "corpus"
    length = recipe.model.context_length or (77 if name == "clip" else 32)
    if name == "corpus":
        return corpus_tokenizer(data.mix.all_texts(), length)
    if name == "clip":
        return clip_tokenizer(length)
    if name == "classes":
        return class_tokenizer([item.names[0] for item in data.classes])
    return load_tokenizer(Path(name), length)


def check_texts(tokenizer: Tokenizer | None, data: TrainingData) -> None:
    """Raise the tokenizer's UniclError if it cannot encode the texts that training draws; only some are tried."""
    if tokenizer is not None:
        texts = list(data.mix.some_texts(TRIED_ROWS))
        if texts:
            tokenizer(texts)
