"""Token lengths of captions and prompts, and the `context_length` that they suggest."""

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
from unicl_cli.jobs.inspect.scan import CaptionTally, CorpusScan

Ints = NDArray[np.int64]
UNCUT = 1 << 16
"""A context length beyond any caption."""
CUTS = (16, 32, 64, 77)
CLIP_LENGTH = 77
KEPT_SHARE = 0.99
"""Share of captions that fit into the advised context length."""
MAX_FITTED_PROMPTS = 100_000
"""Largest number of prompts to fit a corpus's own tokenizer on, besides the sampled captions."""
CHUNK = 4096
LAST_BIN = 97
"""The histogram's last bin, which includes all longer captions."""


def caption_facts(corpus: Corpus, scanned: CorpusScan, tokenizer: str) -> dict[str, Any]:
    """Return the numbers of texts and tokens, the shares that are cut, and the advised context length."""
    tally = scanned.texts
    made = make_tokenizer(tokenizer, corpus, tally)
    with progress("counting tokens", len(tally.sample)) as advance:
        tokens = count_tokens(made, tally.sample, advance)
    prompts = longest_prompts(made, corpus)
    hashes = np.concatenate(tally.hashes)
    distinct = len(np.unique(hashes))
    advised = advise_context_length(tokens, prompts, tokenizer)
    facts: dict[str, Any] = {
        "pictures": tally.rows,
        "texts": len(hashes),
        "distinct": distinct,
        "unique_text_share": distinct / len(hashes),
        "words": len(scanned.words),
        "tokenizer": tokenizer,
        "vocabulary": made.vocab_size,
        "sampled": len(tokens),
        "tokens": length_quantiles(tokens),
        "histogram": np.bincount(np.minimum(tokens, LAST_BIN), minlength=LAST_BIN + 1).tolist(),
        "cut": {str(length): float((tokens > length).mean()) for length in CUTS},
        "context_length": advised,
        "cut_at_advised": float((tokens > advised).mean()),
    }
    return facts | ({"prompt_tokens": length_quantiles(prompts)} if len(prompts) else {})


def make_tokenizer(name: str, corpus: Corpus, tally: CaptionTally) -> TextTokenizer:
    """Make the tokenizer ``corpus`` (fitted here, as in training), ``clip`` or that of a file; it never cuts."""
    if name == "clip":
        return clip_tokenizer(UNCUT)
    if name != "corpus":
        return load_tokenizer(Path(name), UNCUT)
    templates = load_templates(corpus.templates)
    names = [one for item in corpus.classes for one in item.names]
    every = len(names) * len(templates) <= MAX_FITTED_PROMPTS
    pairs = ((t, n) for n in names for t in templates) if every else zip(cycle(templates), names, strict=False)
    return corpus_tokenizer(
        [*(fill_template(t, n) for t, n in islice(pairs, MAX_FITTED_PROMPTS)), *tally.sample], UNCUT
    )


def count_tokens(tokenizer: TextTokenizer, texts: list[str], advance: Callable[[int], None]) -> Ints:
    """Return the number of tokens of each text, int64 (n,), special tokens included."""
    found: list[int] = []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        found += tokenizer.lengths(chunk)
        advance(len(chunk))
    return np.array(found, np.int64)


def longest_prompts(tokenizer: TextTokenizer, corpus: Corpus) -> Ints:
    """Return the tokens of each class's longest prompt: its longest name in the longest template."""
    if not corpus.classes:
        return np.empty(0, np.int64)
    templates = load_templates(corpus.templates)
    bare = tokenizer.lengths([fill_template(template, "x") for template in templates])
    longest = templates[int(np.argmax(bare))]
    names = [max(item.names, key=len) for item in corpus.classes]
    return np.array(tokenizer.lengths([fill_template(longest, name) for name in names]), np.int64)


def length_quantiles(values: Ints) -> dict[str, int]:
    """Return quantiles of lengths, each a length that occurs."""
    shares = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    found = np.quantile(values, list(shares.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(shares, found, strict=True)}


def advise_context_length(tokens: Ints, prompts: Ints, tokenizer: str) -> int:
    """Return the least multiple of 8 that fits KEPT_SHARE of the captions and every prompt; for CLIP at most 77."""
    needed = max(int(np.quantile(tokens, KEPT_SHARE, method="inverted_cdf")), int(prompts.max(initial=0)))
    rounded = -(-needed // 8) * 8
    return min(rounded, CLIP_LENGTH) if tokenizer == "clip" else rounded
