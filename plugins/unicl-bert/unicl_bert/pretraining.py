"""BERT's pre-training: masked words and next sentences of a text file (section 3.1)."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_bert.bert import Bert, Size, Special, mask_of, save_bert
from unicl_bert.masking import SALT, Task, mask_words, sum_tasks, word_task
from unicl_cli.api import (
    JsonlSink,
    Plan,
    UniclError,
    corpus_tokenizer,
    decay_groups,
    fit,
    load_tokenizer,
    lr_at,
    read_regular,
    seed_of,
    start_accelerator,
)

MOST_BYTES = 1_000_000_000
"""The largest text file: all its tokens are held in memory."""
METRICS = "metrics.jsonl"
Sentence = Sequence[int]


class Pairs(NamedTuple):
    """Sentence pairs `[CLS] A [SEP] B [SEP]`, cut to the longest."""

    tokens: Tensor
    """int64 (b, L)."""
    kinds: Tensor
    """int64 (b, L): 0 up to the first `[SEP]` and on padding, 1 for B and its `[SEP]`."""
    there: Tensor
    """bool (b, L): no padding."""
    words: Tensor
    """bool (b, L): neither `[CLS]`, `[SEP]` nor padding."""
    is_random: Tensor
    """int64 (b,): 0 if B follows A, 1 if it is of another document."""
    seeds: Tensor
    """int64 (b,): 32 random bits for each pair, of which its masked words are made."""


class Numbers(NamedTuple):
    """The numbers of a text training."""

    steps: int
    batch: int
    lr: float
    length: int
    seed: int


class TextStage(nn.Module):
    """Masked words plus next sentence, each a mean, summed: `BertForPreTraining`'s loss."""

    def __init__(self, model: Bert, share: float = 0.15) -> None:
        super().__init__()
        self.model, self.share = model, share
        self.pool, self.next = nn.Linear(model.width, model.width), nn.Linear(model.width, 2)

    def forward(self, batch: Pairs) -> dict[str, Tensor]:
        special = (self.model.special.mask, self.model.size.vocab_size)
        hidden = mask_words(batch.tokens, batch.words, batch.seeds, self.share, special)
        states = self.model.encode(hidden.tokens, batch.there, batch.kinds)
        follows, is_random = self.next(self.pool(states[:, 0]).tanh()), batch.is_random
        values = F.cross_entropy(follows, is_random, reduction="none")
        pairs = Task(values, follows.argmax(1) == is_random, torch.ones_like(is_random, dtype=torch.bool))
        words = word_task(self.model.predict(states), batch.tokens, hidden.chosen)
        return sum_tasks({"words": words, "next": pairs})


def read_documents(path: Path) -> list[list[str]]:
    """Return the documents of a text file: a sentence per line, an empty line between documents (BERT's format)."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UniclError(f"{path}: cannot be read as UTF-8 text", "name a text file, one sentence per line") from error
    blocks = "\n".join(line.strip() for line in text.splitlines()).split("\n\n")
    documents = [[line for line in block.split("\n") if line] for block in blocks]
    whole = [document for document in documents if len(document) > 1]
    if len(whole) < 2:
        raise UniclError(
            f"{path}: {len(whole)} documents of two or more sentences; next-sentence prediction needs two",
            "write one sentence per line, and an empty line between documents",
        )
    return whole


def draw_pair(documents: Sequence[Sequence[Sentence]], seed: int, draw: int) -> tuple[Sentence, Sentence, int]:
    """Draw A, B and 0 if B is the next sentence, 1 if it is one of another document, by a fair coin.

    A random B that equals the next sentence is drawn again, up to 100 times; it then counts as the next one.
    """
    rng = torch.Generator().manual_seed(seed_of(seed, draw, SALT, 1))

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=rng))

    own = below(len(documents))
    at = below(len(documents[own]) - 1)
    first, following = documents[own][at], documents[own][at + 1]
    if below(2):
        for _ in range(100):
            other = documents[(own + 1 + below(len(documents) - 1)) % len(documents)]
            second = other[below(len(other))]
            if second != following:
                return first, second, 1
    return first, following, 0


def join_pairs(
    pairs: Sequence[tuple[Sentence, Sentence, int]], ends: tuple[int, int, int], length: int, seeds: Sequence[int]
) -> Pairs:
    """Build the batch of some pairs; ``ends`` are the ids of `[CLS]`, `[SEP]` and padding.

    The longer of both is cut from its end until the pair fits ``length``.
    """
    start, end, pad = ends
    rows: list[tuple[list[int], list[int]]] = []
    for first, second, _ in pairs:
        a, b = list(first), list(second)
        while len(a) + len(b) + 3 > length:
            (a if len(a) >= len(b) else b).pop()
        rows.append(([start, *a, end, *b, end], [0] * (len(a) + 2) + [1] * (len(b) + 1)))
    tokens, kinds = (
        nn.utils.rnn.pad_sequence([torch.tensor(row[n]) for row in rows], batch_first=True, padding_value=fill)
        for n, fill in ((0, pad), (1, 0))
    )
    there = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row, _ in rows])[:, None]
    words = there & (tokens != start) & (tokens != end)
    return Pairs(tokens, kinds, there, words, torch.tensor([y for *_, y in pairs]), torch.tensor(seeds))


def train_text(source: Path, out: Path, size: Size, tokenizer_file: Path | None, numbers: Numbers) -> dict[str, float]:
    """Train a text stream on ``source``, write it into ``out`` in transformers' layout; return the last metrics.

    ``size.vocab_size`` and ``size.positions`` are taken from tokenizer and length.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UniclError(f"{out}: is not empty", "name another folder, or remove it")
    texts = read_documents(source)
    flat = [line for document in texts for line in document]
    length = numbers.length
    tokenizer = corpus_tokenizer(flat, length) if tokenizer_file is None else load_tokenizer(tokenizer_file, length)
    documents, start = tokenized(texts, tokenizer)
    ends = (start, tokenizer.eot_id, tokenizer.pad_id)
    mask = mask_of(tokenizer)
    torch.manual_seed(numbers.seed)
    size = size._replace(vocab_size=max(tokenizer.vocab_size, mask + 1), positions=length)
    stage = TextStage(Bert(size, Special(tokenizer.pad_id, tokenizer.eot_id, mask), None))
    accelerator = start_accelerator()
    stage.to(accelerator.device).train()
    rate = partial(lr_at, name="cosine", peak=numbers.lr, warmup=numbers.steps // 10, steps=numbers.steps, floor=0.0)
    optimizer = torch.optim.AdamW(decay_groups(stage, 0.01), lr=numbers.lr, betas=(0.9, 0.999))
    plan = Plan(steps=numbers.steps, seed=numbers.seed, lr=rate, log_every=min(20, numbers.steps))
    out.mkdir(parents=True, exist_ok=True)
    lines = JsonlSink(out / METRICS, 0)
    fit(stage, stream(documents, ends, numbers), optimizer, plan, accelerator, lines, after=lambda step: None)
    lines.close()
    head = {f"bert.pooler.dense.{name}": x for name, x in stage.pool.state_dict().items()}
    head |= {f"cls.seq_relationship.{name}": x for name, x in stage.next.state_dict().items()}
    save_bert(out, stage.model, tokenizer, head)
    return json.loads((out / METRICS).read_text(encoding="utf-8").splitlines()[-1])


def tokenized(texts: Sequence[Sequence[str]], tokenizer: Any) -> tuple[list[list[Sentence]], int]:
    """Return the ids of each sentence without its ends, and the id of the start token."""
    end, starts = tokenizer.eot_id, set[int]()
    documents: list[list[Sentence]] = []
    for document in texts:
        rows = tokenizer(document).tolist()
        starts |= {row[0] for row in rows}
        documents.append([row[1 : row.index(end)] for row in rows if end in row])
    if len(starts) != 1 or end in starts:
        raise UniclError("the tokenizer has no start and end tokens", "use one of BERT, or leave --tokenizer out")
    return documents, starts.pop()


def stream(documents: Sequence[Sequence[Sentence]], ends: tuple[int, int, int], numbers: Numbers) -> Iterator[Any]:
    """Yield (step, Pairs): draw n of the training is a function of (seed, n)."""
    for step in range(numbers.steps):
        draws = range(step * numbers.batch, (step + 1) * numbers.batch)
        pairs = [draw_pair(documents, numbers.seed, draw) for draw in draws]
        seeds = [seed_of(numbers.seed, draw, SALT) for draw in draws]
        yield step, join_pairs(pairs, ends, numbers.length, seeds)
