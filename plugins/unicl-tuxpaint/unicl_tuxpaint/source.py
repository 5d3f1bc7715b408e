"""The data source of Tux Paint's stamps: categories as classes, captions by language, an image with each sound."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from unicl_cli.api import NO_LABEL, ClassName, Row, UniclError, read_files, stamp_files
from unicl_tuxpaint.stamps import INSTALL, FoundStamps, Stamp, find_stamps, split_stamps

ALL = "all"
SHOWN = 12
"""Maximum number of languages that an error lists."""


class TuxPaint:
    """The source. ``languages`` and ``audio`` as its factory takes them; rows are made on the first use.

    Without ``audio`` a row is an image, with its captions in all the languages. With it, a row is an image with a
    sound: a spoken name has the caption in its own language alone, a sound for all languages has all captions. Captions
    that no spoken name says, and labelled images without a sound, are in rows without one. Images alone (`--images`)
    are left out if they have no sound.
    """

    templates = "clip80"

    def __init__(self, path: str, kind: str, languages: str, audio: str | None, depth: int | None) -> None:
        self.path, self.kind, self.audio, self.depth = Path(path).expanduser(), kind, audio, depth
        self.asked = tuple(dict.fromkeys(part.strip() for part in languages.split(",")))
        self.media = ("audio",) if audio else ()
        if depth is not None and depth < 1:
            raise UniclError(f"tuxpaint: depth={depth}: below 1", "use depth=1 for the first level of categories")

    @cached_property
    def found(self) -> FoundStamps:
        if not self.path.is_dir():
            raise UniclError(f"tuxpaint: {self.path}: no such folder", INSTALL)
        return find_stamps(self.path)

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """The languages asked for, as the files spell them. UniclError for one that no caption has."""
        there = {language.casefold(): language for language in self.found.languages}
        if self.asked == (ALL,):
            return self.found.languages
        if wrong := [language for language in self.asked if language.casefold() not in there]:
            shown = ", ".join(self.found.languages[:SHOWN])
            more = f", … ({len(there)})" if len(there) > SHOWN else ""
            raise UniclError(f"tuxpaint: no captions in language '{wrong[0]}'", f"choose from {shown}{more}, or all")
        return tuple(there[language.casefold()] for language in self.asked)

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The categories with an image; each is named by as many of its folders as no other class shares."""
        if self.kind != "labels":
            return ()
        paths = sorted({self._category(stamp) for stamp in self.found.stamps})
        tails = Counter(path[-count:] for path in paths for count in range(1, len(path) + 1))
        return tuple(ClassName("/".join(path), (_name_class(path, tails),)) for path in paths)

    @property
    def splits(self) -> Sequence[str]:
        return [split for split in ("train", "val", "test") if self._rows.get(split)]

    def rows(self, split: str) -> list[Row]:
        return self._rows.get(split, [])

    def read(self, row: Row) -> dict[str, bytes]:
        return read_files(self.path, row)

    def stamp(self, row: Row) -> int:
        return stamp_files(self.path / row.ref, [self.path / file for _, file in row.media])

    @property
    def notes(self) -> list[str]:
        """Notes for ``prepare`` on files that are not rows."""
        _ = self._rows
        return [f"tuxpaint: left out: {what}: {count:,}" for what, count in self._left_out.items() if count]

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        stamps = self.found.stamps
        numbers = {c.key: number for number, c in enumerate(self.classes)}
        splits = split_stamps(stamps, (_bytes_of(self.path / stamp.image) for stamp in stamps))
        self._left_out = Counter(self.found.ignored)
        rows: dict[str, list[Row]] = {}
        for stamp, split in zip(stamps, splits, strict=True):
            label = numbers["/".join(self._category(stamp))] if self.kind == "labels" else NO_LABEL
            made = [row._replace(label=label) for row in self._rows_of(stamp)]
            rows.setdefault(split, []).extend(made)
            self._left_out["images without a sound in these languages"] += not made
        if not any(row.media for of in rows.values() for row in of) and self.audio:
            what = "spoken name or sound" if self.audio == "both" else self.audio
            raise UniclError(f"tuxpaint: no {what} in {', '.join(self.languages[:SHOWN])}", "use languages=all")
        return rows

    def _rows_of(self, stamp: Stamp) -> Iterator[Row]:
        """Yield the rows of a stamp; each caption is in one row of a spoken name, or in those without one."""
        spoken = [of for of in self.languages if of in stamp.names and self.audio in ("name", "both")]
        heard = [of for of in ("", *self.languages) if of in stamp.sounds and self.audio in ("sound", "both")]
        for language in spoken:
            yield self._row(stamp, f"#{language}", (language,), stamp.names[language])
        for language in heard:
            mark, texts = (f"#sound-{language}", (language,)) if language else ("#sound", self.languages)
            yield self._row(stamp, mark, texts, stamp.sounds[language])
        rest = tuple(of for of in self.languages if of not in spoken and of in stamp.captions)
        is_pair = bool(self.audio) and self.kind == "images"
        if not is_pair and "" not in heard and (rest or not (spoken or heard)):
            yield self._row(stamp, "", rest, None)

    def _row(self, stamp: Stamp, mark: str, languages: Sequence[str], sound: str | None) -> Row:
        captions = () if self.kind == "images" else languages
        texts = tuple(dict.fromkeys(stamp.captions[of] for of in captions if of in stamp.captions))
        media = (("audio", sound),) if sound else ()
        return Row(f"{stamp.image}{mark}", stamp.image, texts, NO_LABEL, media=media)

    def _category(self, stamp: Stamp) -> tuple[str, ...]:
        return stamp.category[: self.depth] or (self.path.name,)


def _bytes_of(image: Path) -> bytes:
    """Return the bytes of a file; none if it cannot be read, for which `prepare` leaves it out by name."""
    try:
        return image.read_bytes()
    except OSError:
        return b""


def _name_class(path: tuple[str, ...], tails: Counter[tuple[str, ...]]) -> str:
    """Return the shortest end of a path that is the end of no other class, with spaces: `euro coins`."""
    count = next((count for count in range(1, len(path)) if tails[path[-count:]] == 1), len(path))
    return " ".join(path[-count:]).replace("_", " ").replace("-", " ")
