"""Search of a corpus: queries of texts, images and media, sums of them, and the items that are nearest to each."""

from __future__ import annotations

from collections.abc import Sequence
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.core.dist import bare
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.inference.image_inputs import ImageInput, read_image
from unicl_cli.inference.media import match_kind
from unicl_cli.runs.folder import no_corpus_error

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalRows
    from unicl_cli.inference.encoder import Encoder

PLUS = "+"
IMAGE, TEXT = "image", "text"
SMALLEST = 1e-4
"""Length of a mean of unit vectors below which they cancel each other."""


class Wanted(NamedTuple):
    """The items to search: those of a modality in a split of a corpus; None: the recipe's corpus, its test split."""

    data: str | None
    split: str | None
    of: str
    top_k: int


class Items(NamedTuple):
    """The items that are searched: unit vectors, float32 (n, D), and a description of each."""

    features: Tensor
    shown: list[dict[str, Any]]


def split_queries(words: Sequence[str]) -> list[list[str]]:
    """Return the terms of each query: a + joins its neighbours, other neighbours are queries of their own."""
    found: list[list[str]] = []
    is_joined = False
    for place, word in enumerate(words):
        if not word.strip() or (word == PLUS and (is_joined or place in (0, len(words) - 1))):
            raise UniclError("QUERY: a term is missing or empty", f"put a text or a file on both sides of each {PLUS}")
        if word != PLUS and is_joined:
            found[-1].append(word)
        elif word != PLUS:
            found.append([word])
        is_joined = word == PLUS
    return found


def search(encoder: Encoder, queries: Sequence[Sequence[str]], wanted: Wanted, *, batch: int) -> dict[str, Any]:
    """Return the document of `unicl search`, the same on every rank: the nearest items for each query.

    Ties are in the order of the corpus.
    """
    if not encoder.unit or cast("Any", bare(encoder.loaded.step)).loss.score != "text":
        message = f"model {encoder.loaded.name}: its scores are not cosines of vectors in one space"
        raise UniclError(message, "use a model that compares unit vectors, such as one of the losses unicl and clip")
    known = [IMAGE, TEXT, *(kind.name for kind in encoder.media)]
    if wanted.of not in known:
        raise UniclError(f"--of {wanted.of}: not a modality of the model", f"use one of {', '.join(known)}")
    vectors = torch.stack([add_terms(encoder, terms) for terms in queries])
    corpus = open_corpus(wanted.data or next(iter(encoder.loaded.corpora), None) or refuse(encoder))
    split = corpus.eval_split(wanted.split)
    items = encode_items(encoder, corpus, split, wanted.of, batch)
    answers: list[dict[str, Any]] = []
    for terms, vector in zip(queries, vectors, strict=True):
        cosines, places = (items.features @ vector).sort(descending=True, stable=True)
        best = zip(cosines[: wanted.top_k].tolist(), places[: wanted.top_k].tolist(), strict=True)
        results = [items.shown[place] | {"cosine": round(cosine, 6)} for cosine, place in best]
        answers.append({"query": f" {PLUS} ".join(terms), "results": results})
    facts = {"model": encoder.loaded.name, "data": corpus.name, "split": split, "of": wanted.of, "n": len(items.shown)}
    return {"schema": "unicl/search/1", **facts, "queries": answers}


def refuse(encoder: Encoder) -> str:
    """Raise UniclError for a model whose recipe names no corpus."""
    raise no_corpus_error(encoder.loaded.name)


def add_terms(encoder: Encoder, terms: Sequence[str]) -> Tensor:
    """Return the mean of unit vectors at unit length, float32 (D,) on the CPU (ImageBind, CVPR 2023, section 4.4)."""
    mean = torch.stack([encode_term(encoder, term) for term in terms]).mean(0)
    if float(mean.norm()) < SMALLEST:
        raise UniclError(f"{f' {PLUS} '.join(terms)}: the terms cancel each other", "leave one of them out")
    return F.normalize(mean, dim=0)


def encode_term(encoder: Encoder, term: str) -> Tensor:
    """Encode a file of an image or of media, or else a text: float32 (D,) on the CPU.

    A term is a file if it ends like one, or names one.
    """
    kind = match_kind(term, encoder.media)
    ends_like_file = kind is not None or (guess_type(term)[0] or "").startswith(("image/", "audio/"))
    if not ends_like_file and not names_file(term):
        if encoder.loaded.tokenizer is None:
            raise UniclError(f"model {encoder.loaded.name} has no text tower", "search with images")
        return encoder.encode_text(encoder.loaded.tokenizer([term]))[0].cpu()
    if not names_file(term):
        raise UniclError(f"{term}: no such file", "check the path; a text must not end like the name of a file")
    found = read_image(ImageInput(term), encoder.loaded.transform if kind is None else kind.read)
    if isinstance(found, str):
        raise UniclError(f"{term}: {found}", "use another file")
    x = found[None]
    return (encoder.encode_image(x).embed if kind is None else encoder.encode_extra(kind.name, x))[0].cpu()


def names_file(term: str) -> bool:
    """Return whether a file has this name."""
    try:
        return Path(term).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def encode_items(encoder: Encoder, corpus: Corpus, split: str, of: str, batch: int) -> Items:
    """Encode all items of a modality in a split. UniclError if no row has one."""
    name = f"{corpus.name} {split}"
    parts: list[Tensor] = []
    shown: list[dict[str, Any]] = []
    for kind in corpus.kinds(split):
        table = corpus.table(split, kind)
        rows = list(range(len(table))) if of in (IMAGE, TEXT) else table.media_rows(of).nonzero()[0].tolist()
        shown += describe_rows(table, rows)
        if rows and of == IMAGE:
            parts.append(encoder.encode_rows(table, rows, batch=batch, label=f"{name} images"))
        elif rows and of != TEXT:
            parts.append(encoder.encode_media(of, table, rows, batch=batch, label=f"{name} {of}"))
    texts = list(dict.fromkeys(text for item in shown for text in item["texts"])) if of == TEXT else []
    if texts:
        parts = [encoder.encode_texts(texts, batch=batch, label=f"{name} texts")]
        shown = [{"texts": [text]} for text in texts]
    if not parts:
        raise UniclError(f"{corpus.path}: no row of split '{split}' has {of}", "use another --split, or another --of")
    return Items(torch.cat(parts), shown)


def describe_rows(table: EvalRows, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return the key and the texts of each row."""
    keys, texts = table.column("key").to_pylist(), table.column("texts").to_pylist()
    return [{"key": keys[row], "texts": texts[row]} for row in rows]
