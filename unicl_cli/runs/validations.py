"""The lines of ``eval.jsonl``: the entry of the recipe that each belongs to, their names, and the best of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]
Key = tuple[int | None, str, str]
"""Number of the entry (None: an older line has none), corpus, split."""


class Entry(NamedTuple):
    """Entry of ``eval`` in a recipe: its number there, its corpus, and the split that it measures."""

    number: int
    corpus: str
    split: str
    is_trained: bool
    """The split is one of ``data.train``."""

    def facts(self) -> dict[str, Any]:
        """Return what a line says of its entry."""
        flag = {"trained_split": True} if self.is_trained else {}
        return {"entry": self.number, "corpus": self.corpus, "split": self.split, **flag}


def main_entry(entries: Sequence[Entry]) -> Entry:
    """Return the entry by which checkpoints are compared: the first one whose split is not trained on, if any."""
    return min(entries, key=lambda entry: (entry.is_trained, entry.number))


def is_of(row: Row, entry: Entry, entries: Sequence[Entry]) -> bool:
    """Return True if a line is of this entry.

    A line of an older unicl has no number: it is that of the last entry with its corpus and split, which replaced it.
    """
    if "entry" in row:
        return row["entry"] == entry.number
    place = (row.get("corpus"), row.get("split"))
    return entry.number == max((e.number for e in entries if (e.corpus, e.split) == place), default=None)


def name_entries(keys: Sequence[Key]) -> dict[Key, str]:
    """Return the name of each entry for people: corpus and split, and the number where several share both."""
    shared = Counter(key[1:] for key in keys)
    return {
        (number, corpus, split): f"{corpus} {split}" + (f" (eval.{number})" if shared[corpus, split] > 1 else "")
        for number, corpus, split in keys
    }


def key_rows(rows: Sequence[Row]) -> list[Key]:
    """Return the key of each line; a line without a number takes that of a newer line of its corpus and split."""
    places = [(str(row.get("corpus", "?")), str(row.get("split", "?"))) for row in rows]
    numbers = [row.get("entry") if type(row.get("entry")) is int else None for row in rows]
    known = {place: number for place, number in zip(places, numbers, strict=True) if number is not None}
    return [
        (known.get(place) if number is None else number, *place) for place, number in zip(places, numbers, strict=True)
    ]


def name_rows(rows: Sequence[Row]) -> list[str]:
    """Return the name of each line's entry."""
    keys = key_rows(rows)
    names = name_entries(list(dict.fromkeys(keys)))
    return [names[key] for key in keys]


def group_rows(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the name and the lines of each entry, in the recipe's order; entries on training data come last."""
    keys = key_rows(rows)
    found: dict[Key, list[Row]] = {key: [] for key in keys}
    for key, row in zip(keys, rows, strict=True):
        found[key].append(row)
    names = name_entries(list(found))

    def order(key: Key) -> tuple[bool, int]:
        return any(row.get("trained_split") is True for row in found[key]), key[0] or 0

    for key in sorted(found, key=order):
        yield names[key], found[key]


def best_step(figures: Mapping[int, float], mode: Literal["max", "min"] = "max") -> int | None:
    """Return the step with the best value; of equal ones the first. None without metrics."""
    choose = max if mode == "max" else min
    best = choose(figures.values(), default=None)
    return min((step for step, value in figures.items() if value == best), default=None)


def best_of(rows: Iterable[Row]) -> tuple[str, float] | None:
    """Return the name of the first metric of the main entry, and its largest value."""
    for _, own in group_rows(list(rows)):
        figures = [(key, value) for row in own for key, value in row.items() if isinstance(value, float)]
        if figures:
            name = figures[0][0]
            return name, max(value for key, value in figures if key == name)
    return None
