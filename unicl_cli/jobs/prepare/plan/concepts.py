"""Training rows chosen by the concepts that they name: queries of a list, or the classes of the corpus.

A query takes the rows that contain it, as many as it may have, those with the smallest hash of the key; a row that some
query takes is kept (Radford et al., 2021, arXiv:2103.00020, section 2.2). A smaller number therefore keeps a subset.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from unicl_cli.contracts import ClassName, Row
from unicl_cli.data.class_mentions import ClassNameFinder, split_text
from unicl_cli.data.sources.text_file import read_strict_lines
from unicl_cli.errors import Remark, UniclError
from unicl_cli.formats import count_of
from unicl_cli.jobs.prepare.plan.holdout import TRAIN, ReadSource
from unicl_cli.jobs.prepare.plan.request import PrepareOptions
from unicl_cli.storage.derived import Derived
from unicl_cli.storage.text_hashes import hash_text

MOST_QUERIES = 10_000_000
Concepts = Callable[[ReadSource, Row], Iterable[int]]
"""A function that returns the numbers of a row's concepts, each once."""


class Queries(NamedTuple):
    """The phrases of a list by their words, and a hash of them; ``longest``: first word -> most words that begin so."""

    path: str
    numbers: dict[str, int]
    longest: dict[str, int]
    sha256: str
    notes: list[str]

    def find(self, _source: ReadSource, row: Row) -> set[int]:
        """Return the queries that a text of the row contains: their words one after the other, in any case."""
        return {number for text in row.texts for number in self._find(split_text(normalize("NFC", text)))}

    def _find(self, words: Sequence[str]) -> Iterator[int]:
        for start, word in enumerate(words):
            for end in range(start + 1, min(start + self.longest.get(word, 0), len(words)) + 1):
                number = self.numbers.get(" ".join(words[start:end]))
                if number is not None:
                    yield number


def read_queries(path: str) -> Queries:
    """Read a file with a query on each line. UniclError if it cannot be read, or has none."""
    numbers: dict[str, int] = {}
    longest: dict[str, int] = {}
    blank = repeated = 0
    for line in read_strict_lines(Path(path)):
        words = split_text(normalize("NFC", line))
        if not words:
            blank += bool(line.strip())
            continue
        before = len(numbers)
        numbers.setdefault(" ".join(words), before)
        repeated += len(numbers) == before
        longest[words[0]] = max(longest.get(words[0], 0), len(words))
        if before > MOST_QUERIES:
            raise UniclError(f"{path}: more than {MOST_QUERIES:,} queries", "check that this is the right file")
    if not numbers:
        raise UniclError(f"{path}: no queries", "write a word or phrase on each line")
    name = Path(path).name
    notes = [f"{name}: queries without a letter or digit are ignored: {blank:,}"] if blank else []
    notes += [f"{name}: queries that repeat an earlier one: {repeated:,}"] if repeated else []
    sha256 = hashlib.sha256("\n".join(sorted(numbers)).encode("utf-8", "replace")).hexdigest()
    return Queries(path, numbers, longest, sha256, notes)


def find_classes(classes: Sequence[ClassName]) -> Concepts:
    """Return a function for the classes of a row's labels; for captions, of those that they name (as in `inspect`)."""
    finder = ClassNameFinder(classes)

    def find(source: ReadSource, row: Row) -> Iterable[int]:
        if source.mapping.kind == "labels":
            return source.mapping.labels(row)
        return {number for text in row.texts for number in finder.named_by(split_text(normalize("NFC", text)))}

    return find


class Subset(Derived[Row]):
    """The rows of a source that are kept: 8 bytes for each."""

    def __init__(self, raw: Sequence[Row], numbers: NDArray[np.int64]) -> None:
        self.raw, self.numbers = raw, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def derive(self, at: int) -> Row:
        return self.raw[int(self.numbers[at])]


class _Takers:
    """The rows that each concept takes: at most ``most`` of them, those with the smallest hashes; None: all."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.counts: Counter[int] = Counter()
        self._smallest: dict[int, array[int]] = {}

    def add(self, concept: int, number: int) -> None:
        """Count a row, by its hash, with one of its concepts."""
        self.counts[concept] += 1
        if self.most is None:
            return
        own = self._smallest.setdefault(concept, array("Q"))
        own.append(number)
        if len(own) > 2 * self.most + 64:
            self._smallest[concept] = array("Q", sorted(own)[: self.most])

    def find_limits(self) -> dict[int, int]:
        """Return the largest hash that a concept takes, for each that cannot take all of its rows."""
        most = self.most or 0
        full = [concept for concept, count in self.counts.items() if self.most is not None and count > most]
        return {concept: sorted(self._smallest[concept])[most - 1] for concept in full}


class Choice(NamedTuple):
    """A rule for rows: at most ``most`` of each of their ``concepts`` are kept, and those without one if ``others``.

    ``nouns`` are the words for one concept and for several, ``what`` is the option, and ``sha256`` identifies the rule.
    """

    concepts: Concepts
    most: int | None
    nouns: tuple[str, str]
    what: str
    sha256: str
    others: bool = True


def choose_rows(sources: Sequence[ReadSource], choice: Choice) -> tuple[list[ReadSource], list[str]]:
    """Return the sources with the training rows that are kept, and a note for each. UniclError if one keeps none."""
    takers = _Takers(choice.most)
    for source in sources:
        for row in source.rows.get(TRAIN, ()):
            for concept in choice.concepts(source, row):
                takers.add(concept, _hash(source, row))
    limits = takers.find_limits()
    met = f"{count_of(len(takers.counts), *choice.nouns)} found"
    if choice.most is not None:
        met += f", of which {len(limits):,} had more than {count_of(choice.most, 'row')}"
    chosen: list[ReadSource] = []
    notes: list[str] = []
    for source in sources:
        if TRAIN not in source.rows:
            chosen.append(source)
            continue
        rows = source.rows[TRAIN]
        kept = Subset(rows, np.frombuffer(array("q", _kept(source, choice, limits)), np.int64))
        if not kept:
            raise UniclError(
                f"{source.name}: no caption of its {count_of(len(rows), 'training row')} contains a query",
                "check the list of --query-list, or leave this source out",
            )
        notes.append(
            Remark(f"{source.name}: kept {len(kept):,} of {len(rows):,} training rows by {choice.what} ({met})")
        )
        chosen.append(source._replace(rows={**source.rows, TRAIN: kept}, choice=source.choice + choice.sha256))
    return chosen, notes


def _kept(source: ReadSource, choice: Choice, limits: Mapping[int, int]) -> Iterator[int]:
    """Yield the numbers of the training rows that one of their concepts takes, and of those without one."""
    for number, row in enumerate(source.rows[TRAIN]):
        own, at = tuple(choice.concepts(source, row)), _hash(source, row)
        taken = any(concept not in limits or at <= limits[concept] for concept in own)
        if taken or (choice.others and not own):
            yield number


def choose_by_options(
    read: Sequence[ReadSource], classes: Sequence[ClassName], options: PrepareOptions, queries: Queries | None
) -> tuple[list[ReadSource], list[str]]:
    """Return the sources with the rows that `--query-list` and `--balance` leave, and notes on them.

    UniclError for an option that finds nothing to work on.
    """
    sources, notes = list(read), list(queries.notes if queries else ())
    if queries:
        most = options.max_per_query
        rule = Choice(
            queries.find, most, ("query", "queries"), "--query-list", f"{queries.sha256}/{most}", others=False
        )
        if not any(of.mapping.kind == "captions" for of in sources):
            raise UniclError("--query-list: no source has captions", "give one with --captions, or leave it out")
        sources = _choose_in(sources, "captions", rule, notes)
    elif options.max_per_query is not None:
        raise UniclError("--max-per-query: needs --query-list", "name the file of queries, or use --balance")
    if options.balance is not None:
        if not classes:
            raise UniclError(
                "--balance: no source has classes",
                "give a source of labels, or balance captions with --query-list and --max-per-query",
            )
        rule = Choice(
            find_classes(classes), options.balance, ("class", "classes"), "--balance", f"balance/{options.balance}"
        )
        for kind in ("labels", "captions"):
            sources = _choose_in(sources, kind, rule, notes)
    return sources, notes


def _choose_in(sources: list[ReadSource], kind: str, choice: Choice, notes: list[str]) -> list[ReadSource]:
    """Apply a rule to all sources of one kind together, and add its notes."""
    chosen, said = choose_rows([of for of in sources if of.mapping.kind == kind], choice)
    notes += said
    by_name = {of.name: of for of in chosen}
    return [by_name.get(of.name, of) for of in sources]


def _hash(source: ReadSource, row: Row) -> int:
    return hash_text(source.mapping.key(row))
