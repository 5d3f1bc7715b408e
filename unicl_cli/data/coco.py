"""Reader of COCO's annotations (`instances_train2017.json`): checked, bounded, with notes on what it leaves out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from unicl_cli.data.pictures import ImageError, file_size_in_pixels
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json

MAX_BYTES = 4_000_000_000
"""The largest annotation file; that of COCO train2017 has 470 MB."""
DOUBTFUL = 0.1
"""From this share of boxes that leave their image on, the numbers are probably not [x, y, width, height]."""


class CocoObject(NamedTuple):
    """An object in an image: its class from 0, its box (x1, y1, x2, y2) in pixels inside the image, its segmentation.

    ``area`` is COCO's, by which objects are small, medium or large. A ``crowd`` is a region with several objects.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Any


class CocoImage(NamedTuple):
    """An image and the objects in it."""

    file: str
    width: int
    height: int
    objects: tuple[CocoObject, ...]


class CocoSet(NamedTuple):
    """A set of annotated images. ``notes`` say what was left out; ``digest`` is the sha256 of the annotations."""

    file: Path
    folder: Path
    classes: tuple[str, ...]
    images: tuple[CocoImage, ...]
    notes: tuple[str, ...]
    digest: str

    @property
    def boxes(self) -> int:
        """The number of boxes that a detector learns or is measured on."""
        return sum(not thing.crowd for scene in self.images for thing in scene.objects)


def find_coco(data: Path, split: str | None, images: Path | None, usual: Sequence[str]) -> tuple[Path, Path]:
    """Return the annotation file and the folder of its images.

    ``data`` is an annotation file, or a folder in COCO's layout: `annotations/instances_SPLIT.json` beside `SPLIT/`.
    Without ``split``, the first that begins with one of the ``usual`` words is taken.
    """
    if data.is_file():
        if split is not None:
            raise UniclError(f"--split {split}: {data} is a file", "leave --split out, or give the folder to --data")
        near = data.parent.parent / data.stem.removeprefix("instances_")
        inside = data.parent.name == "annotations" and near.is_dir()
        return data, images or (near if inside else data.parent)
    found = {path.stem.removeprefix("instances_"): path for path in sorted(data.glob("annotations/instances_*.json"))}
    if not found:
        what = "has no annotations/instances_*.json" if data.is_dir() else "is missing"
        raise UniclError(f"{data}: {what}", "give a folder in COCO's layout, or an annotation file and --images")
    name = split or next((name for word in usual for name in found if name.startswith(word)), "")
    if name not in found:
        raise UniclError(f"{data}: has no split '{name or usual[0]}'", f"set --split to one of: {', '.join(found)}")
    return found[name], images or data / name


def read_coco(file: Path, folder: Path, *, masks: bool) -> CocoSet:
    """Read an annotation file. UniclError for what cannot be meant; a note for what is left out or cut.

    ``masks``: every object that is not a crowd must have a segmentation.
    """
    try:
        data = read_regular(file, MAX_BYTES)
        document = parse_json(data)
    except OSError as error:
        raise UniclError(f"{file}: cannot be read: {error.strerror or error}", "give COCO's annotation file") from error
    except ValueError as error:
        raise UniclError(f"{file}: not valid JSON: {error}", "restore it from a copy") from error
    entries, given, kinds = (_objects(file, document, key) for key in ("images", "annotations", "categories"))
    images = {entry["id"]: entry for entry in _with_ids(file, entries, "images")}
    classes = {entry["id"]: str(entry.get("name", "")) for entry in _with_ids(file, kinds, "categories")}
    if not images or not classes:
        raise UniclError(f"{file}: has no {'images' if classes else 'categories'}", "give COCO's annotation file")
    names = tuple(classes.values())
    if len(set(names)) < len(names) or "" in names:
        raise UniclError(f"{file}: categories: a name is empty or repeated", "give each category its own name")
    things = _Things(file, images, {number: label for label, number in enumerate(classes)}, masks=masks)
    things.add(given)
    scenes = tuple(
        CocoImage(str(entry["file_name"]), entry["width"], entry["height"], tuple(things.found.get(number, ())))
        for number, entry in images.items()
    )
    _check_images(file, folder, scenes)
    if not any(not thing.crowd for scene in scenes for thing in scene.objects):
        raise UniclError(f"{file}: no image has a box", "give annotations of objects (instances_*.json)")
    return CocoSet(file, folder, names, scenes, tuple(things.notes()), sha256(data).hexdigest())


def _objects(file: Path, document: Any, key: str) -> list[Mapping[str, Any]]:
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UniclError(f"{file}: has no list '{key}'", "give COCO's annotation file: images, annotations, categories")
    return value


def _with_ids(file: Path, entries: Sequence[Mapping[str, Any]], key: str) -> Iterator[Mapping[str, Any]]:
    """Yield entries with their ids checked; an image also has its file and size."""
    seen: set[Any] = set()
    for place, entry in enumerate(entries, 1):
        number = entry.get("id")
        if not isinstance(number, int | str) or isinstance(number, bool) or number in seen:
            raise UniclError(f"{file}: {key}: entry {place} has no id of its own", "give each entry its own id")
        seen.add(number)
        if key == "images":
            name, sides = entry.get("file_name"), (entry.get("width"), entry.get("height"))
            if not isinstance(name, str) or not all(type(side) is int and 0 < side < 10**6 for side in sides):
                raise UniclError(f"{file}: image {number}: has no file_name, width or height", "write all three")
            if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UniclError(f"{file}: image {number}: '{name}' lies outside of the images", "write plain names")
        yield entry


def _check_images(file: Path, folder: Path, scenes: Sequence[CocoImage]) -> None:
    """Raise UniclError if images are missing, cannot be opened, or have another size than their annotations say."""
    missing = [scene.file for scene in scenes if not (folder / scene.file).is_file()]
    if missing:
        what = f"{len(missing):,} of {len(scenes):,} images are not in {folder} (first: {missing[0]})"
        raise UniclError(f"{file}: {what}", "set --images to the folder that they are in")
    _check_sizes(file, folder, scenes)


def _check_sizes(file: Path, folder: Path, scenes: Sequence[CocoImage]) -> None:
    broken: list[str] = []
    others: list[str] = []
    for scene in scenes:
        try:
            width, height = file_size_in_pixels(folder / scene.file)
        except (OSError, ImageError) as error:
            broken.append(f"{scene.file}: {error}")
            continue
        if (width, height) != (scene.width, scene.height):
            others.append(f"{scene.file} has {width} x {height} pixels, not {scene.width} x {scene.height}")
    if broken:
        what = f"{len(broken):,} of {len(scenes):,} images cannot be opened (first: {broken[0]})"
        raise UniclError(f"{file}: {what}", "restore them from a copy")
    if others:
        what = f"{len(others):,} of {len(scenes):,} images have another size than their annotations say"
        raise UniclError(
            f"{file}: {what} (first: {others[0]})",
            "set --images to the images that the annotations were made on, or correct width and height",
        )


class _Things:
    """The objects of a set by image, and what was wrong with the others."""

    def __init__(
        self, file: Path, images: Mapping[Any, Mapping[str, Any]], labels: Mapping[Any, int], *, masks: bool
    ) -> None:
        self.file, self.images, self.labels, self.masks = file, images, labels, masks
        self.found: dict[Any, list[CocoObject]] = {}
        self.faults: dict[str, list[str]] = {}
        self.total = 0

    def add(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Add all objects; raise UniclError if references, numbers or segmentations are wrong."""
        for place, annotation in enumerate(annotations, 1):
            name = f"annotation {annotation.get('id', place)}"
            fault = self._refusal(annotation)
            if fault:
                self.faults.setdefault(fault, []).append(name)
            elif not any(key in REFUSED for key in self.faults):
                self._place(annotation, name)
        self.total = len(annotations)
        for what, hint in REFUSED.items():
            if names := self.faults.get(what):
                raise UniclError(f"{self.file}: {len(names):,} of {self.total:,} {what} (first: {names[0]})", hint)
        odd = sum(len(self.faults.get(what, ())) for what in (CUT, OUTSIDE))
        if odd > DOUBTFUL * self.total:
            raise UniclError(
                f"{self.file}: {odd:,} of {self.total:,} boxes leave their image (first: "
                f"{(self.faults.get(CUT) or self.faults[OUTSIDE])[0]})",
                "write bbox as [x, y, width, height] in pixels of the image",
            )

    def _refusal(self, annotation: Mapping[str, Any]) -> str:
        """Return the reason why the file is refused for an annotation, empty if there is none."""
        if not _is_known(annotation.get("image_id"), self.images):
            return UNKNOWN_IMAGE
        if not _is_known(annotation.get("category_id"), self.labels):
            return UNKNOWN_CLASS
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return NO_BOX
        if annotation.get("iscrowd", 0) not in (0, 1) or not _is_number(annotation.get("area", 0)):
            return ODD_FIELDS
        if self.masks and not annotation.get("segmentation"):
            return NO_MASK
        return "" if not self.masks or _is_segmentation(annotation["segmentation"]) else ODD_MASK

    def _place(self, annotation: Mapping[str, Any], name: str) -> None:
        image = self.images[annotation["image_id"]]
        x, y, width, height = map(float, annotation["bbox"])
        cut = (max(0.0, x), max(0.0, y), min(x + width, image["width"]), min(y + height, image["height"]))
        if width <= 0 or height <= 0:
            return self.faults.setdefault(EMPTY, []).append(name)
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            return self.faults.setdefault(OUTSIDE, []).append(name)
        if max(abs(a - b) for a, b in zip(cut, (x, y, x + width, y + height), strict=True)) > 1:
            self.faults.setdefault(CUT, []).append(name)
        area = float(annotation.get("area", (cut[2] - cut[0]) * (cut[3] - cut[1])))
        shown = annotation["segmentation"] if self.masks else None
        label, crowd = self.labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
        return self.found.setdefault(annotation["image_id"], []).append(CocoObject(label, cut, area, crowd, shown))

    def notes(self) -> Iterator[str]:
        """Yield a line for each kind of annotation that is left out or changed."""
        for what in (EMPTY, OUTSIDE, CUT):
            if names := self.faults.get(what):
                yield f"{self.file}: {len(names):,} of {self.total:,} {what} (first: {names[0]})"


UNKNOWN_IMAGE = "annotations are of an image_id that is not in images"
UNKNOWN_CLASS = "annotations are of a category_id that is not in categories"
NO_BOX = "annotations have no bbox of four finite numbers"
ODD_FIELDS = "annotations have an iscrowd that is not 0 or 1, or an area that is not a number"
NO_MASK = "annotations have no segmentation"
ODD_MASK = "annotations have a segmentation that is neither polygons nor run lengths"
REFUSED = {
    UNKNOWN_IMAGE: "remove them, or add the images",
    UNKNOWN_CLASS: "remove them, or add the categories",
    NO_BOX: "write bbox as [x, y, width, height] in pixels",
    ODD_FIELDS: "correct these annotations",
    NO_MASK: "set boxes_only=true to train without masks",
    ODD_MASK: "write polygons [[x1, y1, x2, y2, …]], or {size: [height, width], counts: …}",
}
"""Reason to refuse a file -> what to do."""
EMPTY = "boxes have no area and are left out"
OUTSIDE = "boxes lie outside of their image and are left out"
CUT = "boxes leave their image and are cut at its edge"


def _is_known(number: Any, known: Mapping[Any, Any]) -> bool:
    return isinstance(number, int | str) and not isinstance(number, bool) and number in known


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _is_segmentation(value: Any) -> bool:
    """Return whether a segmentation has COCO's form: polygons of three points and more, or run lengths."""
    if isinstance(value, list):
        even = all(isinstance(part, list) and not len(part) % 2 and all(map(_is_number, part)) for part in value)
        return even and any(len(part) >= 6 for part in value)  # some tools also write lines and points
    if not isinstance(value, dict):
        return False
    counts, size = value.get("counts"), value.get("size")
    plain = isinstance(counts, str) or (isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts))
    return plain and isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
