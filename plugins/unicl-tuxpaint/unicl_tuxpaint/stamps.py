"""The files of Tux Paint's stamps: images, captions by language, spoken names and sounds, and which belong together.

Beside `duck.png` lie `duck.txt` (the first line in English, then `LANG.utf8=…`), `duck_desc.ogg` (the name, spoken in
English), `duck_desc_LANG.ogg`, `duck.ogg` (its sound) and `duck_LANG.ogg` (a sound that is a word: Tux Paint's
documentation, "Extending Tux Paint", section "Stamps").
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unicl_cli.api import UniclError

ENGLISH = "en"
SOUNDS = (".ogg", ".wav")
INSTALL = "install them with: apt-get install tuxpaint-stamps-default; or name their folder: tuxpaint?path=FOLDER"
MAX_TEXT = 1_000_000
"""Maximum number of bytes of a file of captions."""
_VARIANT = re.compile(r"(_mirror|_flip)+$")
_LINE = re.compile(r"([A-Za-z]{2,3}(?:_[A-Za-z]+)?(?:@[a-z]+)?)\.utf-?8=(.*)", re.IGNORECASE)
_SPOKEN = re.compile(r"_desc(?:_(?P<language>[A-Za-z]{2,3}(?:_[A-Za-z]+)?(?:@[a-z]+)?))?$")


class Stamp(NamedTuple):
    """An image with its captions, its spoken names and its sounds, each by language; a sound without one is for all."""

    image: str
    captions: Mapping[str, str]
    names: Mapping[str, str]
    sounds: Mapping[str, str]

    @property
    def category(self) -> tuple[str, ...]:
        return PurePosixPath(self.image).parts[:-1]

    @property
    def name(self) -> str:
        return PurePosixPath(self.image).stem.casefold()


class FoundStamps(NamedTuple):
    """All stamps of a folder in the order of their paths; ``languages`` of captions, and counts of what is not read."""

    stamps: list[Stamp]
    languages: tuple[str, ...]
    ignored: Counter[str]


def find_stamps(root: Path) -> FoundStamps:
    """Return the stamps under a folder. UniclError if there are none, or if captions cannot be read."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    ignored: Counter[str] = Counter()
    images = list(_keep_images(files, ignored))
    if not images:
        raise UniclError(f"tuxpaint: {root}: no stamps in this folder", INSTALL)
    there = set(files)
    captions = {of: read_captions(root / f"{of}.txt") if f"{of}.txt" in there else {} for of in map(_stem, images)}
    languages = tuple(sorted({language for of in captions.values() for language in of} | {ENGLISH}))
    names, sounds = _sort_sounds(files, captions, languages, ignored)
    stamps = [
        Stamp(image, captions[stem], names.get(stem, {}), sounds.get(stem, {}))
        for image, stem in zip(images, map(_stem, images), strict=True)
    ]
    ignored["images without a caption"] = sum(not stamp.captions for stamp in stamps)
    return FoundStamps(stamps, languages, +ignored)


def read_captions(file: Path) -> dict[str, str]:
    """Return the captions of a stamp by language. UniclError for a file that is not UTF-8, or too long."""
    try:
        if (size := file.stat().st_size) > MAX_TEXT:
            raise UniclError(f"tuxpaint: {file}: {size:,} bytes of captions", "keep the captions alone in this file")
        first, *others = file.read_text(encoding="utf-8-sig").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise UniclError(f"tuxpaint: {file}: is not UTF-8: {error.reason}", "save it as UTF-8") from error
    except OSError as error:
        raise UniclError(f"tuxpaint: {file}: {error.strerror}", "check the permissions of this file") from error
    found = {ENGLISH: first.strip()}
    for line in others:
        if match := _LINE.fullmatch(line.strip()):
            found.setdefault(match[1], match[2].strip())
    return {language: text for language, text in found.items() if text}


def split_stamps(stamps: Iterable[Stamp], data: Iterable[bytes]) -> list[str]:
    """Return the split of each stamp, ``data`` being the bytes of its image: 8 in 10 are in train, 1 in val and test.

    Stamps with equal bytes, the same file name or the same English caption are in one split. It follows from a hash of
    the first name of the group.
    """
    stamps = list(stamps)
    parents = list(range(len(stamps)))

    def root_of(at: int) -> int:
        while parents[at] != at:
            at = parents[at]
        return at

    first: dict[object, int] = {}
    for at, (stamp, image) in enumerate(zip(stamps, data, strict=True)):
        caption = stamp.captions.get(ENGLISH, "").casefold().strip(" .!")
        for mark in (("bytes", blake2b(image).digest()), ("name", stamp.name), ("caption", caption)):
            if mark[1]:  # no caption joins no stamps
                low, high = sorted((root_of(first.setdefault(mark, at)), root_of(at)))
                parents[high] = low
    splits = ["train"] * 8 + ["val", "test"]
    return [splits[_number_of(stamps[root_of(at)].image) % 10] for at in range(len(stamps))]


def _number_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _keep_images(files: list[str], ignored: Counter[str]) -> Iterator[str]:
    """Yield the PNG files that are stamps of their own; count SVG drawings without one, and turned variants."""
    pngs = {_stem(file): file for file in files if file.lower().endswith(".png")}
    svgs = {_stem(file) for file in files if file.lower().endswith(".svg")}
    for stem, file in pngs.items():
        plain = _VARIANT.sub("", stem)
        if plain != stem and (plain in pngs or plain in svgs):
            ignored["mirrored or flipped images of another stamp"] += 1
        else:
            yield file
    ignored["SVG drawings (save them as PNG to read them)"] = len(svgs - pngs.keys())


def _sort_sounds(
    files: list[str], images: Mapping[str, object], languages: tuple[str, ...], ignored: Counter[str]
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Return image -> language -> file, of spoken names and of sounds; the language of a sound may be empty.

    Files that belong to no image are counted.
    """
    spelled = {language.casefold(): language for language in languages}
    names: dict[str, dict[str, str]] = {}
    sounds: dict[str, dict[str, str]] = {}
    for file in (file for file in files if file.lower().endswith(SOUNDS)):
        stem = _stem(file)
        if match := _SPOKEN.search(stem):
            owner, language, of = stem[: match.start()], match["language"] or ENGLISH, names
        else:
            owner, language, of = stem, "", sounds
            for cut in _cuts(stem) if stem not in images else ():
                if stem[:cut] in images and stem[cut + 1 :].casefold() in spelled:
                    owner, language = stem[:cut], stem[cut + 1 :]
        if owner in images:
            of.setdefault(owner, {}).setdefault(spelled.get(language.casefold(), language), file)
        else:
            ignored["sounds whose image is not read"] += 1
    return names, sounds


def _cuts(stem: str) -> list[int]:
    """Return the places of the underscores in a file's name."""
    return [at for at, letter in enumerate(stem) if letter == "_" and at > stem.rfind("/")]
