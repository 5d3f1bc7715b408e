"""The factory of the data source: its options; nothing is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from unicl_tuxpaint.source import TuxPaint

DEBIAN = "/usr/share/tuxpaint/stamps"
"""The folder of the stamps in Debian's package `tuxpaint-stamps-default`."""


def tuxpaint(
    *,
    kind: str,
    path: str = DEBIAN,
    languages: str = "en",
    audio: Literal["name", "sound", "both"] | None = None,
    depth: int | None = None,
) -> TuxPaint:
    """The stamps of Tux Paint: images by category, with captions and spoken names in many languages.

    `languages` are codes with commas between them (`en,de,pt_BR`), or `all`. With `audio`, each row is an image with
    a sound: its spoken `name` in one of the languages, the `sound` that it makes, or `both` in rows of their own.
    `depth=1` makes classes of the first level of categories alone. `path` is the folder of the stamps.
    """
    from unicl_tuxpaint.source import TuxPaint

    return TuxPaint(path, kind, languages, audio, depth)
