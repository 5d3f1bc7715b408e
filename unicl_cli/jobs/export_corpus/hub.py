"""A repository of the `datasets` library: Parquet files for each split, and a card with the features once."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from unicl_cli.core.class_groups import groups_of
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.corpus_format import HF_FEATURES, KNOWN, LABELS, MEDIA, hf_metadata
from unicl_cli.errors import UniclError
from unicl_cli.jobs.export_corpus.card import write_card
from unicl_cli.jobs.export_corpus.plan import Piece, Span, Written

ANNOTATED = "annotated"
"""Column with the groups of classes that a row is annotated for, in a corpus with label sets."""
HINT = "check the corpus with unicl prepare --verify -o CORPUS"
MAPS = ("depth", "thermal")
"""Kinds of media that are images."""
_CODECS = {"image.bytes": "NONE", "key": "ZSTD", "texts.list.element": "ZSTD"}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TEXT = {"dtype": "string", "_type": "Value"}
_CLASS = {"dtype": "int64", "_type": "Value"}


class Column(NamedTuple):
    """A column of an export: its Arrow type and its feature; ``is_class`` if its numbers are classes."""

    name: str
    type: Any
    feature: Mapping[str, Any]
    is_class: bool = False


class HubFormat:
    """The layout ``data/SPLIT-00000-of-00002.parquet`` and ``README.md``."""

    def __init__(
        self, corpus: Corpus, out: Path, splits: Sequence[str], class_lines: Sequence[str], licence: str
    ) -> None:
        self.corpus, self.out, self.class_lines, self.licence = corpus, out, class_lines, licence
        self.names = name_splits(splits)
        self.kinds = media_kinds(corpus)
        self.columns = columns_of(corpus)
        features = {column.name: column.feature for column in self.columns}
        self.schema = pa.schema([(c.name, c.type) for c in self.columns], metadata=hf_metadata(features))

    def name_files(self, split: str, cuts: Sequence[Sequence[Span]]) -> list[str]:
        """Return ``data/SPLIT-NUMBER-of-COUNT.parquet`` for each file."""
        count = len(cuts)
        return [f"data/{self.names[split]}-{number:05}-of-{count:05}.parquet" for number in range(count)]

    def write(
        self, file: BinaryIO, tables: Iterable[Any], piece: Piece, stopped: Callable[[], bool]
    ) -> Mapping[str, int] | None:
        """Write one Parquet file with the row groups of the corpus."""
        counts: Counter[str] = Counter()
        with pq.ParquetWriter(
            file,
            self.schema,
            compression=_CODECS,  # pyright: ignore[reportArgumentType] - the stub knows one codec
            use_dictionary=["source"],  # pyright: ignore[reportArgumentType] - nor a list
            write_page_index=True,
            write_page_checksum=True,
        ) as writer:
            for table in tables:
                if stopped():
                    return None
                if MEDIA in table.column_names and not _find_media(table) <= set(self.kinds):
                    raise UniclError(f"{piece.file}: a row has media that the manifest does not name", HINT)
                changed = pa.table([self._column(table, c, counts) for c in self.columns], schema=self.schema)
                writer.write_table(changed, row_group_size=len(changed))
                counts["arrow_bytes"] += changed.nbytes
        return counts

    def _column(self, table: Any, column: Column, counts: Counter[str]) -> Any:
        """Return a column of an export, from the columns of a corpus."""
        name = column.name
        if name in self.kinds:
            found = [_find_medium(items, name) for items in table.column(MEDIA).to_pylist()]
            counts[f"media:{name}"] += sum(item is not None for item in found)
            wrapped = [item and {"bytes": item, "path": None} for item in found] if name in MAPS else found
            return pa.array(wrapped, column.type)
        if name == ANNOTATED:
            groups = groups_of(self.corpus.classes)
            bits = table.column(KNOWN).to_pylist()
            return pa.array([[g for n, g in enumerate(groups) if bit >> n & 1] for bit in bits], column.type)
        if name == "sha256":
            return pa.array([digest.hex() for digest in table.column(name).to_pylist()], column.type)
        return table.column(name).cast(column.type)

    def extras(self, written: Sequence[Written]) -> dict[str, str]:
        """Return the card of the repository."""
        return {"README.md": write_card(self.corpus, self.columns, self.class_lines, self.licence, written, self.names)}

    def facts(self) -> dict[str, Any]:
        """Return the names of the splits in the repository, where they differ from the corpus's."""
        changed = {split: name for split, name in self.names.items() if split != name}
        return {"split_names": changed} if changed else {}

    def commands(self, written: Sequence[Written]) -> dict[str, str]:
        """Return the command that publishes the repository."""
        del written
        return {"upload_command": shlex.join(["hf", "upload", "ORG/NAME", str(self.out), "--repo-type", "dataset"])}


def _find_media(table: Any) -> set[str]:
    return {item["kind"] for items in table.column(MEDIA).to_pylist() for item in items}


def _find_medium(items: Sequence[Mapping[str, Any]], kind: str) -> bytes | None:
    return next((item["bytes"] for item in items if item["kind"] == kind), None)


def name_splits(splits: Sequence[str]) -> dict[str, str]:
    """Return the name of each split in the repository: `datasets` takes letters, digits and _ alone.

    UniclError if two splits would have one name, or for `all`, which means every split.
    """
    names = {split: re.sub(r"\W", "_", split) for split in splits}
    wrong = next((s for s, name in names.items() if name == "all" or list(names.values()).count(name) > 1), None)
    if wrong is not None:
        raise UniclError(
            f"split '{wrong}': cannot be a split of `datasets` as '{names[wrong]}'",
            "leave it out: name others with --split",
        )
    return names


def columns_of(corpus: Corpus) -> list[Column]:
    """Return the columns of an export: those of the corpus that make sense outside of it, and one for each media."""

    def own(name: str, kind: Any) -> Column:
        return Column(name, kind, HF_FEATURES[name])

    columns = [own("image", _IMAGE), own("texts", pa.list_(pa.string()))]
    if corpus.classes:
        columns.append(Column("label", pa.int64(), _CLASS, is_class=True))
    if corpus.manifest.has_sets:
        labels = {"feature": _CLASS, "_type": "List"}
        columns.append(Column(LABELS, pa.list_(pa.int64()), labels, is_class=True))
        columns.append(Column(ANNOTATED, pa.list_(pa.string()), {"feature": _TEXT, "_type": "List"}))
    for kind in media_kinds(corpus):
        if kind in MAPS:
            columns.append(Column(kind, _IMAGE, {"_type": "Image"}))
        else:
            columns.append(Column(kind, pa.binary(), {"dtype": "binary", "_type": "Value"}))
    columns += [own("key", pa.string()), own("source", pa.string()), own("url", pa.string())]
    columns += [own("width", pa.int32()), own("height", pa.int32())]
    columns.append(Column("sha256", pa.string(), _TEXT))
    if len({column.name for column in columns}) < len(columns):
        raise UniclError(f"{corpus.path}: a kind of media has the name of a column", "prepare the corpus without it")
    return columns


def media_kinds(corpus: Corpus) -> tuple[str, ...]:
    """Return the kinds of media that rows of a corpus have."""
    return tuple((corpus.manifest.model_extra or {}).get(MEDIA) or ())
