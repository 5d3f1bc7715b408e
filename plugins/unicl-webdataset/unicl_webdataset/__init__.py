"""The factory of the data source: its options; nothing is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unicl_webdataset.source import WebDataset


def webdataset(  # noqa: PLR0913 - a factory's signature is its options
    *,
    path: str,
    kind: str,
    val: str | None = None,
    test: str | None = None,
    image: str = "jpg;jpeg;png;webp",
    caption: str = "txt",
    label: str = "cls",
    classes: str | None = None,
    first: int | None = None,
    sets: bool = False,
) -> WebDataset:
    """Tars of samples `KEY.jpg KEY.txt KEY.cls KEY.json`, read at random positions, never unpacked.

    `path`, `val` and `test` are shards: a folder, a file, `shard-{000000..000123}.tar` or `*.tar`. `image` lists the
    endings of images; `caption` and `label` are an ending each, or `json:FIELD`. Labels are names, or ids or
    line numbers in `classes`, a file of class names (default: `classnames.txt` beside the shards, counted from 0);
    `first` is the number of its first line. With `sets`, a list at `json:FIELD` is all labels of its image.
    """
    from unicl_webdataset.source import Fields, WebDataset

    shards = {"train": path, "val": val, "test": test}
    fields = Fields(image, caption, label)
    return WebDataset({split: at for split, at in shards.items() if at}, kind, fields, classes, first, sets=sets)
