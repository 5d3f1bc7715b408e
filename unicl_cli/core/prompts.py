"""Class names into prompts: templates by name, from a file or as given."""

from collections.abc import Sequence
from pathlib import Path

from unicl_cli.errors import UniclError, did_you_mean

NAMED = ("clip80", "clip7", "unicl81", "none")


def fill_template(template: str, name: str) -> str:
    """``name`` in place of ``{}`` or ``{c}``; other braces are literal, since templates and names are data."""
    return template.replace("{c}", name).replace("{}", name)


def named_templates(name: str) -> tuple[str, ...]:
    """`clip80`: CLIP's 80 for ImageNet (the paper's) · `clip7`: CLIP's best seven · `unicl81`: those of UniCL's
    release, the 80 and the bare name with a full stop · `none`: the bare name."""
    if name == "none":
        return ("{}",)
    # 3 s of imports that only training and evaluation pay
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    source = SIMPLE_IMAGENET_TEMPLATES if name == "clip7" else OPENAI_IMAGENET_TEMPLATES
    templates = tuple(template("{}") for template in source)
    return (*templates, "{}.") if name == "unicl81" else templates


def load_templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Templates from a list, a list's name (``NAMED``) or a text file with one a line; each has a ``{}`` or ``{c}``."""
    if not isinstance(spec, str):
        templates = tuple(spec)
    elif spec in NAMED:
        templates = named_templates(spec)
    elif Path(spec).is_file():
        try:
            text = Path(spec).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UniclError(f"templates '{spec}' cannot be read: {error}", "one template a line, as UTF-8") from error
        templates = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        raise UniclError(
            f"no templates '{spec}'{did_you_mean(spec, NAMED)}",
            f"use one of {', '.join(NAMED)}, a text file with one template a line, or a list",
        )
    if not templates:
        raise UniclError(f"templates '{spec}' are empty", "give at least one, for example 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template and "{c}" not in template:
            raise UniclError(f"template '{template}' has no place for the class name", "write {} where the name goes")
    return templates
