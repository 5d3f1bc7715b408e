"""Notes on a corpus: one sentence with advice for each problem, the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unicl_cli.formats import count_of, format_share, plural
from unicl_cli.jobs.inspect.near_tables import near_notes

SMALL_CLASS = 5
"""A class with fewer images is small."""
IMBALANCE = 20
"""Ratio of the largest to the smallest class above which there is a note."""
FEW_DISTINCT = 0.9
"""Share of distinct captions below which there is a note."""


def write_notes(facts: Mapping[str, Any]) -> list[str]:
    """Return the notes; empty if nothing stands out."""
    found: list[str] = []
    for note in (_note_names, _note_images, near_notes, _note_classes, _note_sets, _note_captions, _note_batch):
        found += note(facts)
    return found


def _note_names(facts: Mapping[str, Any]) -> Iterator[str]:
    same = facts.get("colliding_names", [])
    if same:
        first = f"'{same[0]['name']}' is {' and '.join(same[0]['keys'][:3])}"
        yield (
            f"{count_of(len(same), 'prompt name belongs', 'prompt names belong')} to several classes ({first}): "
            "their prompts are equal but their labels differ; prepare them with ?names=path, ?depth=1 or ?classes=FILE"
        )


def _note_images(facts: Mapping[str, Any]) -> Iterator[str]:
    found = facts["duplicates"]
    if n := found["pictures_with_several_labels"]:
        images = count_of(n, "image has", "images have")
        several = "rows with different labels" if "label_sets" in facts else "several labels: one row for each"
        yield f"{images} {several}"
    for split, n in found["also_in_train"].items():
        if n:
            rows = f"{count_of(n, 'row')} of split {split} {plural(n, 'repeats', 'repeat')} an image of train"
            yield f"{rows}: results on {split} look too good"
    if n := facts["rejected"]["n"]:
        yield f"{count_of(n, 'row was', 'rows were')} left out by prepare: see {facts['path']}/rejects"
    tiny = facts["pictures"]["tiny"]
    if n := tiny["n"]:
        smallest = facts["pictures"]["short_side"]["min"]
        yield (
            f"{count_of(n, 'row has', 'rows have')} an image with a side below {tiny['below']} px (the smallest: "
            f"{smallest} px): leave them out with prepare --min-side {tiny['below']}"
        )


def _note_classes(facts: Mapping[str, Any]) -> Iterator[str]:
    classes = facts.get("per_class")
    if classes is None or not classes["n"]:
        return
    if classes["empty"]:
        empty, all_classes = classes["empty"], count_of(classes["classes"], "class")
        yield f"{empty:,} of {all_classes} {plural(empty, 'has', 'have')} no image in split {facts['split']}"
    smallest, largest = classes["quantiles"]["min"], classes["quantiles"]["max"]
    if few := classes["few"]["n"]:
        most = f"{classes['few']['at_most']} images or fewer in split {facts['split']}"
        yield f"{few:,} of {count_of(classes['classes'], 'class')} {plural(few, 'has', 'have')} {most}"
    if 0 < smallest < SMALL_CLASS:
        yield f"the smallest class has {count_of(smallest, 'image')}"
    if smallest and largest > IMBALANCE * smallest:
        yield f"the largest class has {largest / smallest:,.0f} times as many images as the smallest"


def _note_sets(facts: Mapping[str, Any]) -> Iterator[str]:
    found = facts.get("label_sets")
    if found is None:
        return
    for each in found["groups"]:
        if not each["known"]:
            yield f"no row is annotated for group '{each['group']}' in split {facts['split']}"
    tree = found.get("taxonomy")
    if tree and (n := tree["rows_above_leaves"]):
        yield (
            f"{count_of(n, 'row is', 'rows are')} labelled above a leaf of the taxonomy: prompts of deeper ranks are "
            "hidden for them"
        )


def _note_captions(facts: Mapping[str, Any]) -> Iterator[str]:
    captions = facts.get("captions")
    if captions is None:
        return
    cut = format_share(captions["cut_at_advised"]) if captions["cut_at_advised"] else "none"
    prompts = " and no prompt" if "prompt_tokens" in captions and _holds_prompts(captions) else ""
    yield (
        f"model.context_length: {captions['context_length']} with tokenizer {captions['tokenizer']} cuts {cut} of "
        f"the captions{prompts}"
    )
    if captions["unique_text_share"] < FEW_DISTINCT:
        repeated = format_share(1 - captions["unique_text_share"])
        yield (
            f"{repeated} of the captions repeat another: set data.caption_targets: text_hash to make equal texts "
            "positives"
        )
    images = {kind: each["pictures"] for kind, each in facts["concepts"].items()}
    if both := images.get("labels", 0) + images["captions"] - images["both"]:
        yield (
            f"{count_of(both, 'row has', 'rows have')} a label and a caption, which UniCL makes a positive of "
            "its class: if captions describe their image, set loss.own_text=0.5"
        )


def _holds_prompts(captions: Mapping[str, Any]) -> bool:
    return captions["prompt_tokens"]["max"] <= captions["context_length"]


def _note_batch(facts: Mapping[str, Any]) -> Iterator[str]:
    found = facts["pairs"]
    per_anchor = found.get("labels", {}).get("others_per_anchor", 0)
    if per_anchor >= 0.05:
        shares = "a label with the prompts of" if "label_sets" in facts else "its class with"
        yield (
            f"in a batch of {found['batch_size']}, a label row shares {shares} {per_anchor:.1f} other rows on "
            "average: positives for UniCL, false negatives for CLIP"
        )
