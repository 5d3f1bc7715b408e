"""Generated texts from a fixed seed: captions as long as those of the web, and prompts of class names."""

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


class LabelledTexts(NamedTuple):
    """The texts of a batch with their classes; captions have the label -1 (NO_LABEL)."""

    texts: list[str]
    labels: list[int]


def make_captions(rows: int, seed: int = 0) -> LabelledTexts:
    """Return distinct captions of 7 to 21 words, 11 on average, of one token each."""
    rng = np.random.default_rng((seed, 1))
    words = WORDS.split()
    lengths = np.clip(np.round(rng.lognormal(2.35, 0.25, rows)), 7, 21).astype(int)
    return LabelledTexts([" ".join(rng.choice(words, length)) for length in lengths], [-1] * rows)


def make_prompts(rows: int, classes: int, templates: int, seed: int = 0) -> LabelledTexts:
    """Return prompts of ImageNet classes, drawn per row as in training, in one template or in CLIP's 80."""
    rng = np.random.default_rng((seed, 2, classes, templates))
    forms = ONE if templates == 1 else load_templates("clip80")[:templates]
    labels = rng.integers(0, classes, rows)
    names = class_names(classes)
    texts = [fill_template(forms[rng.integers(len(forms))], names[label]) for label in labels]
    return LabelledTexts(texts, labels.tolist())


def mix_captions_and_prompts(rows: int, classes: int, templates: int, seed: int = 0) -> LabelledTexts:
    """Return prompts and captions in turn, the average of a half-and-half mix."""
    labelled, plain = make_prompts(rows, classes, templates, seed), make_captions(rows, seed)
    turns = [plain if n % 2 else labelled for n in range(rows)]
    return LabelledTexts(
        [each.texts[n] for n, each in enumerate(turns)], [each.labels[n] for n, each in enumerate(turns)]
    )


def class_names(classes: int) -> list[str]:
    """Return the first of ImageNet's 1,000 class names; beyond 1,000, they repeat with a number."""
    names = list(IMAGENET_CLASSNAMES)
    numbered = (f"{names[n % len(names)]} {n // len(names) + 1}" for n in range(len(names), classes))
    return [*names[:classes], *numbered]
