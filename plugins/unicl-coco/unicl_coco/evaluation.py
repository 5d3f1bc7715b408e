"""Box and mask AP of a detector, by COCO's own rules (faster-coco-eval), and their table."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from rich.console import Console
from rich.progress import track
from torch import Tensor

from unicl_cli.api import CocoSet, UniclError, gather_rows, print_line, rank, world_size
from unicl_coco.images import Detect, check_size, read_pixels
from unicl_coco.masks import mask_of, pack_mask

Found = dict[str, Any]
"""A detection as COCO's results write it: image_id and category_id from 1, bbox x, y, width, height, score."""
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
KINDS: dict[Literal["bbox", "segm"], str] = {"bbox": "box", "segm": "mask"}
HALF = 0.5
"""A pixel belongs to a mask from this probability on."""


def match_classes(data: CocoSet, classes: Sequence[str]) -> tuple[dict[int, int], list[str]]:
    """Return the detector's labels (from 1) -> the data's, and warnings. UniclError if the detector lacks a class."""
    lacking = [name for name in data.classes if name not in classes]
    if lacking:
        raise UniclError(
            f"{data.file}: {len(lacking)} of {len(data.classes)} classes are not the detector's (first: {lacking[0]})",
            f"use data of the classes that it was trained on: {', '.join(classes[:8])}{', …' * (len(classes) > 8)}",
        )
    more = [name for name in classes if name not in data.classes]
    labels = {1 + classes.index(name): 1 + place for place, name in enumerate(data.classes)}
    warnings = [f"{len(more)} classes of the detector are not in the data and are not counted ({', '.join(more[:3])})"]
    return labels, warnings if more else []


def detect_all(
    detect: Detect, data: CocoSet, labels: Mapping[int, int], accelerator: Any, *, batch: int, quiet: bool
) -> list[Found]:
    """Detect in all images, shared by the processes; return all detections on every process."""
    own = range(rank(), len(data.images), world_size())
    starts: Iterable[int] = range(0, len(own), batch)
    if rank() == 0 and not quiet:
        starts = track(starts, "images", console=Console(stderr=True), transient=True)
    found: list[Found] = []
    for start in starts:
        numbers = own[start : start + batch]
        scenes = [data.images[number] for number in numbers]
        images = [read_pixels(data.folder / scene.file) for scene in scenes]
        for image, scene in zip(images, scenes, strict=True):
            check_size(image, scene, data.folder / scene.file)
        sizes: dict[tuple[int, ...], list[int]] = {}  # padding would change what is found at the edges
        for place, image in enumerate(images):
            sizes.setdefault(tuple(image.shape), []).append(place)
        for places in sizes.values():
            with torch.no_grad(), accelerator.autocast():
                answers = detect([images[place].to(accelerator.device) for place in places])
            for place, answer in zip(places, answers, strict=True):
                found += list_found(1 + numbers[place], answer, labels)
    return sorted(gather_rows(found), key=lambda one: one["image_id"])


def list_found(number: int, answer: Mapping[str, Tensor], labels: Mapping[int, int]) -> list[Found]:
    """Return the detections in image ``number``, without those of classes that the data lacks."""
    found: list[Found] = []
    corners, masks = answer["boxes"].float().tolist(), answer.get("masks")
    for place, (label, score) in enumerate(zip(answer["labels"].tolist(), answer["scores"].tolist(), strict=True)):
        if label not in labels:
            continue
        left, top, right, bottom = corners[place]
        one: Found = {"image_id": number, "category_id": labels[label], "score": score}
        one["bbox"] = [left, top, right - left, bottom - top]
        if masks is not None:
            one["segmentation"] = pack_mask((masks[place, 0] >= HALF).cpu().numpy().astype(np.uint8))
        found.append(one)
    return found


def truth_of(data: CocoSet, *, masks: bool) -> dict[str, Any]:
    """Return the annotations as COCO's evaluator reads them, with images and classes numbered from 1."""
    annotations: list[Found] = []
    for number, scene in enumerate(data.images, 1):
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            one: Found = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + thing.label}
            one |= {"bbox": [left, top, right - left, bottom - top], "area": thing.area, "iscrowd": int(thing.crowd)}
            if masks:
                shown = mask_of(thing.segmentation, scene.height, scene.width, f"{data.file}: {scene.file}")
                one["segmentation"] = pack_mask(shown)
            annotations.append(one)
    images = [{"id": n, "height": scene.height, "width": scene.width} for n, scene in enumerate(data.images, 1)]
    classes = [{"id": n, "name": name} for n, name in enumerate(data.classes, 1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": classes}


def average_precisions(
    truth: Mapping[str, Any], found: Sequence[Found], kind: Literal["bbox", "segm"]
) -> dict[str, Any]:
    """Return AP (mean over IoU 0.50, 0.55, …, 0.95), at 0.50 and 0.75, by size of object, and of each class.

    ``kind`` is bbox or segm. A metric is None where the data has no such object.
    """
    left_out = "segmentation" if kind == "bbox" else "bbox"  # with a box, an object's size would be that of the box
    own = [{key: value for key, value in one.items() if key != left_out} for one in found]
    reference = COCO(json.loads(json.dumps(truth)))
    answers = reference.loadRes(own) if own else COCO({**truth, "annotations": []})  # older ones read the first answer
    run: Any = COCOeval_faster(reference, answers, kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    precision = run.eval["precision"]  # (IoU, recall, class, area, most detections)
    figures = {name: number_of(value) for name, value in zip(NAMES, run.stats, strict=False)}
    classes = [mean_of(precision[:, :, place, 0, -1]) for place in range(len(truth["categories"]))]
    return {**figures, "per_class": classes}


def mean_of(values: Any) -> float | None:
    """Return the mean of the entries that COCO has not set to -1; None if there are none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def number_of(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)


def evaluate(
    detect: Detect,
    data: CocoSet,
    classes: Sequence[str],
    accelerator: Any,
    *,
    masks: bool,
    batch: int,
    quiet: bool,
) -> dict[str, Any]:
    """Return the metrics of a detector of ``classes`` on annotated images; every rank calls it."""
    labels, warnings = match_classes(data, classes)
    found = detect_all(detect, data, labels, accelerator, batch=batch, quiet=quiet)
    truth = truth_of(data, masks=masks)
    counts = Counter(thing.label for image in data.images for thing in image.objects if not thing.crowd)
    per_class: list[dict[str, Any]] = [{"class": name, "n": counts[n]} for n, name in enumerate(data.classes)]
    document: dict[str, Any] = {"n": len(data.images), "objects": data.boxes, "detections": len(found)}
    for kind, name in KINDS.items():
        if kind == "segm" and not masks:
            continue
        figures = average_precisions(truth, found, kind)
        for entry, value in zip(per_class, figures.pop("per_class"), strict=True):
            entry[f"{name}_ap"] = value
        document[name] = figures
    return {**document, "per_class": per_class, "warnings": [*data.notes, *warnings]}


def show_figures(document: Mapping[str, Any]) -> None:
    """Print the metrics of an evaluation as a table, in percent."""
    print_line(f"{document['n']:,} images, {document['objects']:,} objects, {document['detections']:,} detections")
    for kind in ("box", "mask"):
        for name, value in document.get(kind, {}).items():
            print_line(f"{kind} {name:<10} {percent(value)}")
    for entry in document["per_class"]:
        figures = "  ".join(f"{key.removesuffix('_ap')} {percent(entry[key])}" for key in entry if key.endswith("_ap"))
        print_line(f"{entry['class']:<24} {entry['n']:>7,}  {figures}")


def percent(value: float | None) -> str:
    """Return a share in percent; a dash where there is none."""
    return "    -" if value is None else f"{100 * value:5.1f}"
