"""Prompt templates: by name, from a file or as given, and class names filled into them."""

import re
from collections.abc import Sequence
from pathlib import Path

from unicl_cli.core.clip_templates import CLIP7, CLIP80
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.storage.files import read_regular

MAX_BYTES = 1_000_000
"""The largest file of templates; the 80 of CLIP have 2 kB."""
NAMED = ("clip80", "clip7", "unicl81", "none")
_PLACE = re.compile(r"\{c?\}")


def fill_template(template: str, name: str) -> str:
    """Put ``name`` in each place ``{}`` or ``{c}`` of ``template``; all other braces, also those of the name, stay."""
    return name.join(_PLACE.split(template))


def named_templates(name: str) -> tuple[str, ...]:
    """Return a list of templates by its name.

    `clip80`: CLIP's 80 for ImageNet (the paper's) · `clip7`: CLIP's best seven · `unicl81`: those of UniCL's release,
    the 80 and the bare name with a full stop · `none`: the bare name.
    """
    return {"clip80": CLIP80, "clip7": CLIP7, "unicl81": (*CLIP80, "{}."), "none": ("{}",)}[name]


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"


def load_templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Load templates from a list, the name of a list (``NAMED``) or a text file; each has a ``{}`` or ``{c}``."""
    if not isinstance(spec, str):
        templates = tuple(spec)
    elif spec in NAMED:
        templates = named_templates(spec)
    elif Path(spec).exists() and not Path(spec).is_dir():
        try:
            text = read_regular(Path(spec), MAX_BYTES).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UniclError(
                f"templates '{spec}': cannot be read: {_reason(error)}", "write one template per line, as UTF-8"
            ) from error
        templates = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        raise UniclError(
            f"templates '{spec}': unknown{did_you_mean(spec, NAMED)}",
            f"use one of {', '.join(NAMED)}, a text file with one template per line, or a list",
        )
    if not templates:
        raise UniclError(f"templates '{spec}': empty", "give at least one, for example 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template and "{c}" not in template:
            raise UniclError(f"template '{template}': has no place for the class name", "write {} where the name goes")
    return templates
