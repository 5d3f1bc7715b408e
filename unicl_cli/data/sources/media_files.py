"""Files of media beside images: their names, the image that each belongs to, and a stamp of image and media."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unicl_cli.contracts import Row
from unicl_cli.data.media import KINDS, check_media, read_medium
from unicl_cli.data.pictures import read_file
from unicl_cli.data.sources.folder_names import list_some
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.errors import UniclError, did_you_mean

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "audio": (".wav", ".flac", ".ogg"),
    "depth": (".depth.png",),
    "thermal": (".thermal.png",),
    "imu": (".imu.npy", ".imu.csv"),
}
"""Kind -> the ends of the names of its files: ``1.ogg``, ``1.depth.png``, … lie beside ``1.jpg``."""

Media = tuple[tuple[str, str], ...]


class _SortedFiles(NamedTuple):
    """``found``: image -> kind -> file; ``met``: all kinds; ``alone``: kind -> files without an image.

    ``several`` are further files of one kind of an image.
    """

    found: dict[str, dict[str, str]]
    met: set[str]
    alone: dict[str, list[str]]
    several: list[str]


class KeptRows(NamedTuple):
    """The rows by split with the media that exist, and notes on those that do not."""

    rows: Mapping[str, Sequence[Row]]
    notes: list[str]


class PairedFiles(NamedTuple):
    """The media of the images, by the image's path without its suffix, and notes on halves that are missing."""

    media: Mapping[str, Media]
    notes: list[str]


def read_kinds(written: str | None, src: str) -> tuple[str, ...]:
    """Return the kinds that an option ``media=audio,depth`` names. UniclError for an unknown or repeated one."""
    kinds = tuple(kind.strip() for kind in written.split(",")) if written is not None else ()
    for kind in kinds:
        if kind not in KINDS:
            raise UniclError(
                f"{src}: media={written}: unknown kind '{kind}'{did_you_mean(kind, KINDS)}",
                f"choose from: {', '.join(KINDS)}, with commas between them",
            )
    if len(set(kinds)) < len(kinds):
        raise UniclError(f"{src}: media={written}: names a kind twice", "name each kind once")
    return kinds


def split_name(name: str) -> tuple[str, str] | None:
    """Return (path without its ending, kind) of a file of media, by its name; None for another file."""
    lower = name.lower()
    for kind, endings in ENDINGS.items():
        for ending in endings:
            if lower.endswith(ending):
                return name[: -len(ending)], kind
    return None


def image_stem(image: PurePosixPath) -> str:
    """Return the path that the media of an image share with it."""
    return str(image.with_suffix(""))


def pair_files(
    images: Iterable[PurePosixPath], files: Iterable[PurePosixPath], kinds: Sequence[str], folder: str
) -> PairedFiles:
    """Give each image the ``files`` of its name, at most one of each of the ``kinds``.

    Other files and images without a file are noted by kind. UniclError for a kind without a file.
    """
    named = [(image_stem(image), str(image)) for image in images]
    stems = dict(named)
    sorted_out = _sort_files(files, stems, kinds)
    found, notes = sorted_out.found, list[str]()
    for kind in kinds:
        if kind not in sorted_out.met:
            examples = " or ".join(f"1{ending}" for ending in ENDINGS[kind])
            raise UniclError(
                f"{folder}: no {kind} beside the images", f"name the files like their images: {examples} beside 1.jpg"
            )
        notes += _note_missing(kind, [image for stem, image in stems.items() if kind not in found.get(stem, {})])
        if alone := sorted_out.alone.get(kind):
            notes.append(f"files of {kind} without an image are left out ({len(alone):,}): {list_some(sorted(alone))}")
    if several := sorted_out.several:
        notes.append(f"further files of media of an image are left out ({len(several):,}): {list_some(several)}")
    notes += _note_shared(named, found)
    if others := sorted(sorted_out.met - set(kinds)):
        notes.append(f"files of media that media= does not name are left out: {', '.join(others)}")
    media = {stem: tuple((kind, of[kind]) for kind in kinds if kind in of) for stem, of in found.items()}
    return PairedFiles(media, notes)


def _note_shared(images: Sequence[tuple[str, str]], found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a note on images that have the media of one name, such as those of ``1.jpg`` and ``1.png``."""
    counts = Counter(stem for stem, _ in images)
    shared = [image for stem, image in images if counts[stem] > 1 and stem in found]
    warning = f"images of one name share its media ({len(shared):,}): {list_some(shared)}; give them different names"
    return [warning] if shared else []


def _sort_files(files: Iterable[PurePosixPath], stems: Collection[str], kinds: Sequence[str]) -> _SortedFiles:
    sorted_out = _SortedFiles(defaultdict(dict), set(), defaultdict(list), [])
    for file in sorted(map(str, files), key=_rank):
        stem, kind = split_name(file) or ("", "")
        sorted_out.met.add(kind)
        if kind not in kinds:
            continue
        if stem not in stems:
            sorted_out.alone[kind].append(file)
        elif kind in sorted_out.found[stem]:
            sorted_out.several.append(file)
        else:
            sorted_out.found[stem][kind] = file
    return sorted_out


def keep_existing(
    rows: Mapping[str, Sequence[Row]], kinds: Sequence[str], locate: Callable[[str], Path], path: Path
) -> KeptRows:
    """Drop the media of rows whose file does not exist. UniclError for a kind that no row has then."""
    absent: dict[str, list[str]] = defaultdict(list)
    kept = {split: spool_rows(_keep_media(row, locate, absent) for row in of) for split, of in rows.items()}
    notes: list[str] = []
    for kind in kinds:
        without = [row.ref for of in kept.values() for row in of if kind not in dict(row.media)]
        if len(without) == sum(map(len, kept.values())):
            example = f": its files do not exist, for example {locate(absent[kind][0])}" if absent[kind] else ""
            raise UniclError(
                f"{path}: no row has {kind}{example}",
                f"correct the column {kind}=, whose paths are relative to the list",
            )
        notes += _note_missing(kind, without)
        if absent[kind]:
            notes.append(f"files of {kind} that do not exist ({len(absent[kind]):,}): {list_some(absent[kind])}")
    return KeptRows(kept, notes)


def read_files(folder: Path, row: Row) -> dict[str, bytes]:
    """Return the bytes of a row's image and media, whose places are paths in ``folder``.

    Raises ImageError, MediaError or OSError, each of which leaves the row out with its reason.
    """
    image = read_file(folder / row.ref)
    media = {kind: read_medium(kind, folder / file, file) for kind, file in row.media}
    check_media(media, dict(row.media), image)
    return {"image": image, **media}


def stamp_files(image: Path, media: Sequence[Path]) -> int:
    """Return the size of an image, -1 if it is gone; with media, a hash of the sizes of all."""
    sizes = [_size_of(file) for file in (image, *media)]
    if not media or sizes[0] < 0:
        return sizes[0]
    return int.from_bytes(hashlib.blake2b(repr(sizes).encode(), digest_size=7).digest(), "little")


def _keep_media(row: Row, locate: Callable[[str], Path], absent: Mapping[str, list[str]]) -> Row:
    kept = tuple(item for item in row.media if item[1].startswith("row:") or locate(item[1]).is_file())
    for kind, place in row.media:
        if (kind, place) not in kept:
            absent[kind].append(place)
    return row._replace(media=kept)


def _note_missing(kind: str, images: Sequence[str]) -> list[str]:
    return [f"images without {kind} ({len(images):,}): {list_some(images)}"] if images else []


def _rank(name: str) -> tuple[int, str]:
    """Order files so that of several audio files of an image WAV comes first, then FLAC, then OGG."""
    lower = name.lower()
    endings = [ending for of in ENDINGS.values() for ending in of]
    return next(number for number, ending in enumerate(endings) if lower.endswith(ending)), name


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
