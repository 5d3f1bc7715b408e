"""Texts to measure with, from a fixed seed: captions of the lengths that web captions have, prompts of class names."""

from typing import NamedTuple

import numpy as np
from open_clip import IMAGENET_CLASSNAMES

from unicl_cli.core.prompts import fill_template, load_templates

WORDS = """
a the two some young old small large red blue green white black wooden bright busy empty quiet open painted
man woman child dog cat horse bird car train boat table chair house street field beach river mountain kitchen
window garden city crowd player bicycle umbrella clock sandwich bottle phone
standing sitting walking holding riding looking playing eating parked flying running resting
on in under near beside behind with of at across between over
"""
ONE = ("a photo of a {}.",)


class Texts(NamedTuple):
    """A batch's texts with their classes; NO_LABEL is -1, for captions."""

    texts: list[str]
    labels: list[int]


def captions(rows: int, seed: int = 0) -> Texts:
    """All different: 7 to 21 words, 11 on average, of one token each."""
    rng = np.random.default_rng((seed, 1))
    words = WORDS.split()
    lengths = np.clip(np.round(rng.lognormal(2.35, 0.25, rows)), 7, 21).astype(int)
    return Texts([" ".join(rng.choice(words, length)) for length in lengths], [-1] * rows)


def prompts(rows: int, classes: int, templates: int, seed: int = 0) -> Texts:
    """Classes of ImageNet, drawn for each row as training does, in one template or in CLIP's 80."""
    rng = np.random.default_rng((seed, 2, classes, templates))
    forms = ONE if templates == 1 else load_templates("clip80")[:templates]
    labels = rng.integers(0, classes, rows)
    names = class_names(classes)
    texts = [fill_template(forms[rng.integers(len(forms))], names[label]) for label in labels]
    return Texts(texts, labels.tolist())


def mixed(rows: int, classes: int, templates: int, seed: int = 0) -> Texts:
    """Every other row a caption, as a mix of both kinds has it on average."""
    labelled, plain = prompts(rows, classes, templates, seed), captions(rows, seed)
    turns = [plain if n % 2 else labelled for n in range(rows)]
    return Texts([each.texts[n] for n, each in enumerate(turns)], [each.labels[n] for n, each in enumerate(turns)])


def class_names(classes: int) -> list[str]:
    """The first of ImageNet's thousand, or all of them with numbers where more are wanted."""
    names = list(IMAGENET_CLASSNAMES)
    return [names[n % len(names)] + (f" {n // len(names) + 1}" if n >= len(names) else "") for n in range(classes)]
