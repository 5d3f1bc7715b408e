"""How long captions and prompts are in tokens, and what that means for `context_length`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unicl_cli.core.prompts import fill_template, load_templates
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.tokenizers import TextTokenizer, clip_tokenizer, corpus_tokenizer, load_tokenizer
from unicl_cli.inference.progress import progress
from unicl_cli.jobs.inspect.scan import Scanned, Texts

Ints = NDArray[np.int64]
UNCUT = 1 << 16
"""A context length that no caption reaches."""
CUTS = (16, 32, 64, 77)
CLIP_LENGTH = 77
KEPT = 0.99
"""The share of captions that the advised context length holds whole."""
FITTED = 100_000
"""Prompts at most that a corpus's own tokenizer is fitted on, beside the sampled captions."""
CHUNK = 4096
TOP = 97
"""Lengths beyond stand in the last bin of the histogram."""


def caption_facts(corpus: Corpus, scanned: Scanned, tokenizer: str) -> dict[str, Any]:
    """Texts, distinct ones, tokens, cuts and the advised context length."""
    tally = scanned.texts
    made = tokenizer_for(tokenizer, corpus, tally)
    with progress("counting tokens", len(tally.sample)) as advance:
        tokens = lengths(made, tally.sample, advance)
    prompts = prompt_lengths(made, corpus)
    hashes = np.concatenate(tally.hashes)
    distinct = len(np.unique(hashes))
    advised = advice(tokens, prompts, tokenizer)
    facts: dict[str, Any] = {
        "pictures": tally.rows,
        "texts": len(hashes),
        "distinct": distinct,
        "unique_text_share": distinct / len(hashes),
        "words": len(scanned.words),
        "tokenizer": tokenizer,
        "vocabulary": made.vocab_size,
        "sampled": len(tokens),
        "tokens": spread(tokens),
        "histogram": np.bincount(np.minimum(tokens, TOP), minlength=TOP + 1).tolist(),
        "cut": {str(length): float((tokens > length).mean()) for length in CUTS},
        "context_length": advised,
        "cut_at_advised": float((tokens > advised).mean()),
    }
    return facts | ({"prompt_tokens": spread(prompts)} if len(prompts) else {})


def tokenizer_for(name: str, corpus: Corpus, tally: Texts) -> TextTokenizer:
    """``corpus`` (fitted here, as training would), ``clip`` or a file; it cuts nothing."""
    if name == "clip":
        return clip_tokenizer(UNCUT)
    if name != "corpus":
        return load_tokenizer(Path(name), UNCUT)
    templates = load_templates(corpus.templates)
    names = [one for item in corpus.classes for one in item.names]
    every = len(names) * len(templates) <= FITTED
    pairs = ((t, n) for n in names for t in templates) if every else zip(cycle(templates), names, strict=False)
    return corpus_tokenizer([*(fill_template(t, n) for t, n in islice(pairs, FITTED)), *tally.sample], UNCUT)


def lengths(tokenizer: TextTokenizer, texts: list[str], advance: Callable[[int], None]) -> Ints:
    """int64 (n,), special tokens included."""
    found: list[int] = []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        found += tokenizer.lengths(chunk)
        advance(len(chunk))
    return np.array(found, np.int64)


def prompt_lengths(tokenizer: TextTokenizer, corpus: Corpus) -> Ints:
    """Tokens of each class's longest prompt: its longest name in the longest template."""
    if not corpus.classes:
        return np.empty(0, np.int64)
    templates = load_templates(corpus.templates)
    bare = tokenizer.lengths([fill_template(template, "x") for template in templates])
    longest = templates[int(np.argmax(bare))]
    names = [max(item.names, key=len) for item in corpus.classes]
    return np.array(tokenizer.lengths([fill_template(longest, name) for name in names]), np.int64)


def spread(values: Ints) -> dict[str, int]:
    shares = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    found = np.quantile(values, list(shares.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(shares, found, strict=True)}


def advice(tokens: Ints, prompts: Ints, tokenizer: str) -> int:
    """The least multiple of 8 that holds KEPT of the captions and every prompt whole; CLIP's tower ends at 77."""
    wanted = max(int(np.quantile(tokens, KEPT, method="inverted_cdf")), int(prompts.max(initial=0)))
    rounded = -(-wanted // 8) * 8
    return min(rounded, CLIP_LENGTH) if tokenizer == "clip" else rounded
