"""Counts over the rows of a unit, as its marker has them."""

from collections import Counter
from typing import Any

from unicl_cli.data.corpus_format import LABELS
from unicl_cli.jobs.prepare.shards.prepared_row import PreparedRow, Rejected

MOST_WORDS = 1000
"""Maximum number of words that are counted of a caption."""


class Tally:
    """Counts over the rows of a unit."""

    def __init__(self) -> None:
        self.rows = 0
        self.row_groups: list[int] = []
        self.rejects: list[Rejected] = []
        self.labels: Counter[int] = Counter()
        self.set_sizes: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.short_sides: list[int] = []
        self.words: Counter[int] = Counter()
        self.payload = 0
        self.payload_at_256 = 0
        self.media: Counter[str] = Counter()

    def _not_in(self) -> dict[str, dict[str, int]]:
        """Count the rows left out by the number of a corpus of `--not-in` that has their image."""
        found = Counter(item for row in self.rejects for item in (row.not_in or {}).items())
        counts: dict[str, dict[str, int]] = {}
        for (number, how), count in sorted(found.items()):
            counts.setdefault(number, {})[how] = count
        return counts

    def add(self, row: PreparedRow) -> None:
        record = row.record
        self.rows += 1
        self.labels.update(record[LABELS])
        self.set_sizes[len(record[LABELS])] += 1
        self.counts["urls"] += record["url"] is not None
        self.counts["captioned"] += bool(record["texts"])
        self.counts["texts"] += len(record["texts"])
        self.words.update(min(len(t.split()), MOST_WORDS) for t in record["texts"])
        self.counts["texts_dropped"] += row.texts_dropped
        self.counts["animated"] += row.animated
        short = min(record["width"], record["height"])
        self.short_sides.append(short)
        size = len(record["image"]["bytes"])
        self.payload += size
        self.payload_at_256 += int(size * min(1, 256 / short) ** 2)
        self.media.update(item["kind"] for item in record["media"])

    def facts(self) -> dict[str, Any]:
        reasons = Counter(r.reason for r in self.rejects)
        urls = self.counts["urls"] + sum(r.url is not None for r in self.rejects)
        return {
            "rows": self.rows,
            "row_groups": self.row_groups,
            "labels": {str(label): n for label, n in sorted(self.labels.items())},
            **{name: self.counts[name] for name in ("captioned", "texts", "texts_dropped", "animated")},
            "words": {str(count): n for count, n in sorted(self.words.items())},
            "short_side": [min(self.short_sides, default=0), max(self.short_sides, default=0)],
            "payload": self.payload,
            "payload_at_256": self.payload_at_256,
            "rejected": dict(sorted(reasons.items())),
            **({"media": dict(sorted(self.media.items()))} if self.media else {}),
            **({"urls": urls} if urls else {}),
            **({"not_in": not_in} if (not_in := self._not_in()) else {}),
        }
