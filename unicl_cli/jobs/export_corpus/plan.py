"""The plan of an export: the row groups of a corpus that make each file, and the options that change its bytes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

from unicl_cli.data.corpus import Corpus
from unicl_cli.data.manifest import Shard
from unicl_cli.data.shard_checks import ShardRules, open_shard, read_group
from unicl_cli.storage.documents import Document, Natural


class ExportPlan(Document):
    """All that an export's bytes depend on; kept in its folder, so that a second command continues the same export."""

    format: Literal["webdataset", "hf"]
    corpus_sha256: str
    splits: list[str]
    shard_mb: Natural
    license: str
    versions: dict[str, str]


class Span(NamedTuple):
    """Neighbouring row groups of one shard of the manifest, from ``first`` to before ``end``."""

    shard: Shard
    first: int
    end: int


class Piece(NamedTuple):
    """One file of an export. ``first`` is the number of its first row in the whole export."""

    file: str
    split: str
    spans: tuple[Span, ...]
    rows: int
    first: int
    bytes: int


class Written(Document):
    """A finished file: its rows and bytes, and counts of what was met in its rows, by name."""

    file: str
    split: str
    rows: Natural
    bytes: Natural
    sha256: str
    counts: dict[str, Natural]


class Format(Protocol):
    """One layout: where its files are, how one is written, and what completes the export."""

    def name_files(self, split: str, cuts: Sequence[Sequence[Span]]) -> Sequence[str]: ...
    def write(
        self, file: BinaryIO, tables: Iterable[Any], piece: Piece, stopped: Callable[[], bool]
    ) -> Mapping[str, int] | None:
        """Write the rows of ``tables``, one for each row group; return counts, or None if stopped."""
        ...

    def extras(self, written: Sequence[Written]) -> Mapping[str, str]:
        """Return the small files that belong to the export, by path."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Return further facts for the document of the export."""
        ...

    def commands(self, written: Sequence[Written]) -> Mapping[str, str]:
        """Return commands that use the export in its folder, by what they do."""
        ...


def plan_pieces(corpus: Corpus, splits: Sequence[str], most_bytes: int, layout: Format) -> list[Piece]:
    """Return the files of an export in order; rows keep the order of the manifest."""
    pieces: list[Piece] = []
    first = 0
    for split in splits:
        cuts = [
            cut
            for images in (False, True)  # rows without texts never share a file with others
            for cut in cut_shards(
                [s for s in corpus.manifest.shards if s.split == split and (s.kind == "images") == images], most_bytes
            )
        ]
        for file, spans in zip(layout.name_files(split, cuts), cuts, strict=True):
            rows = sum(count_rows(span) for span in spans)
            size = sum(span_bytes(span) for span in spans)
            pieces.append(Piece(file, split, tuple(spans), rows, first, size))
            first += rows
    return pieces


def cut_shards(shards: Iterable[Shard], most_bytes: int) -> Iterator[list[Span]]:
    """Yield the spans of each file: row groups in order, at most ``most_bytes`` together or one group."""
    spans: list[Span] = []
    size = 0
    for shard in shards:
        first = 0
        for number in range(len(shard.row_groups)):
            group = span_bytes(Span(shard, number, number + 1))
            if size and size + group > most_bytes:
                if number > first:
                    spans.append(Span(shard, first, number))
                yield spans
                spans, size, first = [], 0, number
            size += group
        spans.append(Span(shard, first, len(shard.row_groups)))
    if spans:
        yield spans


def count_rows(span: Span) -> int:
    """Return the rows of a span."""
    return sum(span.shard.row_groups[span.first : span.end])


def span_bytes(span: Span) -> int:
    """Return the bytes of a span: its share of its shard by rows, so that planning opens no file."""
    return span.shard.bytes * count_rows(span) // span.shard.rows


def read_tables(corpus: Corpus, piece: Piece) -> Iterator[Any]:
    """Yield a table of each row group of a piece, all its columns checked. UniclError for a damaged shard."""
    for span in piece.spans:
        path = corpus.path / span.shard.file
        rules = ShardRules(span.shard.kind, len(corpus.classes), corpus.groups)
        with open_shard(path, span.shard.row_groups) as file:
            for number in range(span.first, span.end):
                yield read_group(file, path, number, file.schema_arrow.names, rules)
