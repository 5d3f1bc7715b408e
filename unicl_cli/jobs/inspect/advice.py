"""Notes on a corpus: one sentence with advice for each problem, the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SMALL_CLASS = 5
"""A class with fewer images is small."""
IMBALANCE = 20
"""Ratio of the largest to the smallest class above which there is a note."""
FEW_DISTINCT = 0.9
"""Share of distinct captions below which there is a note."""


def write_notes(facts: Mapping[str, Any]) -> list[str]:
    """Return the notes; empty if nothing stands out."""
    found: list[str] = []
    for note in (_note_names, _note_images, _note_classes, _note_captions, _note_batch):
        found += note(facts)
    return found


def _note_names(facts: Mapping[str, Any]) -> Iterator[str]:
    same = facts.get("colliding_names", [])
    if same:
        first = f"'{same[0]['name']}' is {' and '.join(same[0]['keys'][:3])}"
        yield (
            f"{_count(len(same), 'prompt name belongs', 'prompt names belong')} to several classes ({first}): "
            "their prompts are equal but their labels differ; prepare them with ?names=path, ?depth=1 or ?classes=FILE"
        )


def _note_images(facts: Mapping[str, Any]) -> Iterator[str]:
    found = facts["duplicates"]
    if n := found["pictures_with_several_labels"]:
        yield f"{_count(n, 'image has', 'images have')} several labels: one row for each"
    for split, n in found["also_in_train"].items():
        if n:
            yield f"{_count(n, 'row', 'rows')} of split {split} repeat an image of train: so its results look too good"
    if n := facts["rejected"]["n"]:
        yield f"{_count(n, 'row was', 'rows were')} left out by prepare: see {facts['path']}/rejects"


def _note_classes(facts: Mapping[str, Any]) -> Iterator[str]:
    classes = facts.get("per_class")
    if classes is None or not classes["n"]:
        return
    if classes["empty"]:
        yield f"{classes['empty']} of {facts['classes']} classes have no image in split {facts['split']}"
    smallest, largest = classes["quantiles"]["min"], classes["quantiles"]["max"]
    if 0 < smallest < SMALL_CLASS:
        yield f"the smallest class has {_count(smallest, 'image', 'images')}"
    if smallest and largest > IMBALANCE * smallest:
        yield f"the largest class has {largest / smallest:.0f} times as many images as the smallest"


def _note_captions(facts: Mapping[str, Any]) -> Iterator[str]:
    captions = facts.get("captions")
    if captions is None:
        return
    cut = f"{100 * captions['cut_at_advised']:.1f} %" if captions["cut_at_advised"] else "none"
    prompts = " and no prompt" if "prompt_tokens" in captions and _holds_prompts(captions) else ""
    yield (
        f"model.context_length: {captions['context_length']} with tokenizer {captions['tokenizer']} cuts {cut} of "
        f"the captions{prompts}"
    )
    if captions["unique_text_share"] < FEW_DISTINCT:
        repeated = 100 * (1 - captions["unique_text_share"])
        yield (
            f"{repeated:.0f} % of the captions repeat another: set data.caption_targets: text_hash to make equal "
            "texts positives"
        )


def _holds_prompts(captions: Mapping[str, Any]) -> bool:
    return captions["prompt_tokens"]["max"] <= captions["context_length"]


def _note_batch(facts: Mapping[str, Any]) -> Iterator[str]:
    found = facts["pairs"]
    per_anchor = found.get("labels", {}).get("others_per_anchor", 0)
    if per_anchor >= 0.05:
        yield (
            f"in a batch of {found['batch_size']}, a label row shares its class with {per_anchor:.1f} other rows on "
            "average: positives for UniCL, false negatives for CLIP"
        )


def _count(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"
