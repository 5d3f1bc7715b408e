"""The experiment on own texts with two collections of Debian: images with a category and a text of their own.

    apt-get download openclipart-png tuxpaint-stamps-default      # no root is needed
    dpkg -x openclipart-png_*.deb debian; dpkg -x tuxpaint-stamps-default_*.deb debian
    python benchmarks/collection_targets.py openclipart tuxpaint --debian debian --out DIR --seeds 3

The text of a clip art is the words of its file's name, that of a stamp its English caption. Images with equal bytes,
equal texts or equal file names are in one split, so that no test image or text is seen in training. Runs that exist
are kept. It needs the plugin unicl-tuxpaint.
"""

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from experiment import prepare_once
from rich.console import Console
from targets import SHARES, Arm, measure, tabulate
from unicl_tuxpaint.stamps import ENGLISH, Stamp, find_stamps, split_stamps

FOLDERS = {"openclipart": "usr/share/openclipart/png", "tuxpaint": "usr/share/tuxpaint/stamps"}
MOST_IMAGES, MOST_OF_A_TEXT, LEAST_OF_A_CLASS, LEVELS = 3750, 4, 10, 2
"""Limits of a collection: of its images, images with one text, images of a class; the levels of a category."""
SIZE = "32"
AUGMENT = "data.augment=basic"


class Item(NamedTuple):
    """One image of a collection."""

    image: Path
    label: str
    text: str
    is_test: bool


def number_of(name: str) -> int:
    """Return a number that stands for chance."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def find_images(name: str, root: Path) -> list[Stamp]:
    """Return the images of a collection that have a text, in an order that depends on their names alone."""
    if name == "tuxpaint":
        found = [stamp for stamp in find_stamps(root).stamps if ENGLISH in stamp.captions]
    else:
        files = [path.relative_to(root) for path in sorted(root.rglob("*.png"))]
        found = [Stamp(file.as_posix(), {ENGLISH: text}, {}, {}) for file in files if (text := words_of(file.stem))]
    return sorted(found, key=lambda stamp: number_of(stamp.image))


def words_of(name: str) -> str:
    """Return the words of a file's name, without numbers."""
    return " ".join(word for word in re.split(r"[\W_\d]+", name.lower()) if word not in ("", "svg"))


def class_of(stamp: Stamp) -> str:
    """Return the name of a class: the words of the first folders of a category."""
    return " ".join(stamp.category[:LEVELS]).replace("_", " ").replace("-", " ")


def choose_items(name: str, root: Path) -> list[Item]:
    """Return at most MOST_IMAGES images of classes that are large enough, each once; one in five is for the test."""
    seen: set[bytes] = set()
    texts: Counter[str] = Counter()
    stamps: list[Stamp] = []
    for stamp in find_images(name, root):
        digest, text = blake2b((root / stamp.image).read_bytes()).digest(), stamp.captions[ENGLISH]
        if digest not in seen and texts[text] < MOST_OF_A_TEXT:
            seen.add(digest)
            texts[text] += 1
            stamps.append(stamp)
    stamps = stamps[:MOST_IMAGES]
    splits = split_stamps(stamps, ((root / stamp.image).read_bytes() for stamp in stamps))
    sizes = Counter(map(class_of, stamps))
    return [
        Item(root / stamp.image, class_of(stamp), stamp.captions[ENGLISH], split != "train")
        for stamp, split in zip(stamps, splits, strict=True)
        if sizes[class_of(stamp)] >= LEAST_OF_A_CLASS
    ]


def write_list(file: Path, items: Iterable[Item], *, label: bool, text: bool) -> str:
    """Write a list of images; return it as a source."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", *["label"] * label, *["caption"] * text])
        writer.writerows([str(item.image.absolute()), *[item.label] * label, *[item.text] * text] for item in items)
    return str(file)


def prepare_corpora(name: str, root: Path, out: Path) -> None:
    """Prepare the training images as rows with both, as separate rows and half and half, and the test images."""
    items = choose_items(name, root)
    train, test = ([item for item in items if item.is_test == wanted] for wanted in (False, True))
    leaked = {item.text.casefold() for item in train} & {item.text.casefold() for item in test}
    if leaked:
        raise SystemExit(f"{name}: texts in both splits: {sorted(leaked)[:3]}")
    classes = {item.label for item in items}
    Console().print(f"{name}: {len(train)} training images, {len(test)} test images, {len(classes)} classes")
    halves = train[::2], train[1::2]
    rows = {
        "together": [("--labels", train, True, True)],
        "separate": [("--labels", halves[0], True, False), ("--captions", halves[1], False, True)],
        "both": [("--labels", halves[0], True, True), ("--captions", halves[1], False, True)],
        "test": [("--labels", test, True, True)],
    }
    for form, sources in rows.items():
        words: list[str] = []
        for kind, of, label, text in sources:
            listed = write_list(out / f"{name}-{form}{kind}.csv", of, label=label, text=text)
            words += [kind, listed + ("?split=test" if form == "test" else "?split=train")]
        prepare_once(out / f"{name}-{form}", *words, "--size", SIZE, "--holdout", "0")


def arms_of(name: str, shares: Sequence[float]) -> list[Arm]:
    """Return the arms of `targets.py own-text` for a collection."""
    arms = [(form, share) for form in ("together", "both") for share in shares]
    arms.insert(len(shares), ("separate", 0.0))
    return [
        Arm(form, f"own_text {share:g}", f"{name}-{form}", f"{name}-test", changes=(f"loss.own_text={share}", AUGMENT))
        for form, share in arms
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", choices=FOLDERS)
    parser.add_argument("--debian", type=Path, default=Path("/"), help="the folder in which the packages are unpacked")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of own_text; first the base")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.collections:
        prepare_corpora(name, given.debian / FOLDERS[name], given.out)
        arms = arms_of(name, given.shares)
        results = {arm: [] for arm in arms}
        for seed in range(given.seeds):
            for arm in arms:
                results[arm].append(measure(arm, seed, given.out, given.steps))
        Console().print(tabulate("own-text", results, f"{name}: {given.seeds} seeds, {given.steps} steps"))
        rows = [{**arm._asdict(), "runs": found} for arm, found in results.items()]
        (given.out / f"{name}.json").write_text(json.dumps({"steps": given.steps, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
