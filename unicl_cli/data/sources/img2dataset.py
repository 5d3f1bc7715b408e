"""The output of img2dataset as a source: its tables of URLs, with images in tars, in folders or in the tables."""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.contracts import NO_LABEL, ClassName, Row
from unicl_cli.data.pictures import Extent, read_extent, read_file
from unicl_cli.data.sources.lists.files import webdataset
from unicl_cli.data.sources.lists.parquet_reader import ParquetImages, iter_batches, open_parquet
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.data.sources.tar_members import iter_members
from unicl_cli.errors import UniclError
from unicl_cli.formats import list_first

SUCCESS = "success"
ENDINGS = ("jpg", "png", "webp")
"""The values of `--encode_format`: the ending of images, and the name of their column."""
_STATS = re.compile(r"(\d+)_stats\.json")
_MANY = 1024


class Shard(NamedTuple):
    """One shard: its number as it is written, and the table of its URLs."""

    number: str
    table: Path

    def sibling(self, ending: str) -> Path:
        """Return the path of another file of the shard."""
        return self.table.with_name(f"{self.number}{ending}")


def is_img2dataset(folder: Path) -> bool:
    """Return whether img2dataset has finished a shard in a folder."""
    return any(True for _ in islice(find_shards(folder), 1))


def find_shards(folder: Path) -> Iterator[Shard]:
    """Yield the finished shards of a folder, in no order: img2dataset writes the statistics last."""
    for file in folder.glob("*_stats.json"):
        found = _STATS.fullmatch(file.name)
        if found and (table := folder / f"{found[1]}.parquet").is_file():
            yield Shard(found[1], table)


class Img2Dataset:
    """The source; a row's ``ref`` is the place of its image in the folder, a tab, and its URL."""

    splits = ("train",)
    classes: Sequence[ClassName] = ()
    templates = "clip80"

    def __init__(self, folder: Path, kind: str, caption: str) -> None:
        self.folder, self.kind, self.caption = folder, kind, caption
        self.statuses: Counter[str] = Counter()
        self.lost = 0
        """Rows that say success, whose image is not there."""

    @cached_property
    def shards(self) -> list[Shard]:
        return sorted(find_shards(self.folder), key=lambda shard: int(shard.number))

    @cached_property
    def _rows(self) -> Sequence[Row]:
        return spool_rows(row for shard in self.shards for row in self._shard_rows(shard))

    def rows(self, split: str) -> Sequence[Row]:
        return self._rows if split == "train" else []

    @property
    def notes(self) -> list[str]:
        """Notes for `prepare`: URLs that gave no image, shards that are not finished, images that are missing."""
        name = self.folder.name
        notes: list[str] = []
        failed = self.statuses.total() - self.statuses[SUCCESS]
        if failed:
            reasons = ", ".join(f"{status} {n:,}" for status, n in self.statuses.most_common() if status != SUCCESS)
            notes.append(f"{name}: {failed:,} of {self.statuses.total():,} URLs have no image ({reasons})")
        tables = {file.stem for file in self.folder.glob("*.parquet")} | {f.stem for f in self.folder.glob("*.tar")}
        if unfinished := sorted(tables - {shard.number for shard in self.shards}):
            notes.append(f"{name}: shards without statistics are left out, as unfinished: {list_first(unfinished)}")
        if self.lost:
            notes.append(f"{name}: {self.lost:,} images are missing from their shards")
        return notes

    def read(self, row: Row) -> dict[str, bytes]:
        """Return the bytes of the image."""
        place = row.ref.partition("\t")[0]
        if "#" in place:
            table, _, number = place.rpartition("#")
            stored = self._stored(table).read(int(number))
            return {"image": stored.encode() if isinstance(stored, str) else stored}
        extent = self.extent(row)
        return {"image": read_extent(extent) if extent else read_file(self.folder / place)}

    def extent(self, row: Row) -> Extent | None:
        """Return the place of an image in its tar; None for another one."""
        file, at, place = row.ref.partition("\t")[0].rpartition("@")
        if not at:
            return None
        offset, _, size = place.partition("+")
        return Extent(str(self.folder / file), int(offset), int(size))

    def stamp(self, row: Row) -> int:
        """Return the size of the file that the image is in; -1 if it is gone."""
        file = re.split(r"[@#]", row.ref.partition("\t")[0])[0]
        try:
            return (self.folder / file).stat().st_size
        except OSError:
            return -1

    def origin(self, row: Row) -> str | None:
        """Return the address that the image was downloaded from."""
        return row.ref.partition("\t")[2] or None

    def _stored(self, table: str) -> ParquetImages:
        if table not in self._tables:
            self._tables.clear()  # rows of a unit are in few shards
            self._tables[table] = ParquetImages(self.folder / table, self._image_column(self.folder / table) or "")
        return self._tables[table]

    @cached_property
    def _tables(self) -> dict[str, ParquetImages]:
        return {}

    @staticmethod
    def _image_column(table: Path) -> str | None:
        names = open_parquet(table).schema_arrow.names
        return next((ending for ending in ENDINGS if ending in names), None)

    def _shard_rows(self, shard: Shard) -> Iterator[Row]:
        file = open_parquet(shard.table)
        wanted = ["key", "status", "url", *([self.caption] if self.kind == "captions" else [])]
        if missing := [name for name in wanted if name not in file.schema_arrow.names]:
            have = ", ".join(file.schema_arrow.names)
            raise UniclError(f"{shard.table}: has no column '{missing[0]}'", f"set caption=COLUMN; it has {have}")
        places = self._places(shard)
        number = 0
        for batch in iter_batches(shard.table, file, _MANY, wanted):
            for cells in batch.to_pylist():
                self.statuses[str(cells["status"])] += 1
                if cells["status"] == SUCCESS:
                    place = f"{shard.table.name}#{number}" if places is None else places.get(str(cells["key"]))
                    yield from self._row(shard, cells, place)
                number += 1

    def _row(self, shard: Shard, cells: Mapping[str, Any], place: str | None) -> Iterator[Row]:
        """Yield the row of a URL that gave an image, unless its image is not there."""
        if place is None:
            self.lost += 1
            return
        text = cells.get(self.caption) if self.kind == "captions" else None
        texts = (text,) if isinstance(text, str) and text.strip() else ()
        yield Row(f"{shard.number}/{cells['key']}", f"{place}\t{cells['url'] or ''}", texts, NO_LABEL)

    def _places(self, shard: Shard) -> dict[str, str] | None:
        """Return the place of each image by its key; None if the table has the images. UniclError if there are none."""
        if self._image_column(shard.table):
            return None
        if (tar := shard.sibling(".tar")).is_file():
            return dict(_list_tar(tar))
        if (folder := shard.sibling("")).is_dir():
            files = (file for file in folder.iterdir() if file.suffix[1:] in ENDINGS)
            return {file.stem: f"{folder.name}/{file.name}" for file in files}
        hint = "run img2dataset with --output_format webdataset, files or parquet"
        raise UniclError(f"{shard.table}: its images are neither in a tar, nor in a folder, nor in the table", hint)


def _list_tar(tar: Path) -> Iterator[tuple[str, str]]:
    """Yield the key and the place of each image of a tar. UniclError if it is damaged."""
    try:
        with tar.open("rb", buffering=0) as file:
            for member in iter_members(file, 0, tar.stat().st_size):
                stem, _, ending = member.name.removeprefix("./").rpartition(".")
                if member.isreg() and not member.issparse() and ending in ENDINGS:
                    yield stem, f"{tar.name}@{member.offset_data}+{member.size}"
    except (tarfile.TarError, OSError) as error:
        raise UniclError(f"{tar}: is not a complete tar: {error}", "copy or download it again") from error


def img2dataset(*, path: str, kind: str, caption: str = "caption") -> Img2Dataset:
    """A folder that img2dataset has written, in the formats webdataset, files and parquet.

    Rows are the URLs whose status is success; `caption` is the column of the text. The URL of each image is kept.
    """
    folder = Path(path)
    if kind == "labels":
        tars = f"{webdataset(folder)[:-1]}&label=json:FIELD'"
        raise UniclError(f"{path}: an output of img2dataset has captions and no classes", f"read its tars: {tars}")
    if not is_img2dataset(folder):
        raise UniclError(f"{path}: no finished output of img2dataset", "name the folder with its 00000_stats.json")
    return Img2Dataset(folder, kind, caption)
