"""Checks of the names of images on a command line, before anything slow is loaded."""

import glob
import os
import sys

from unicl_cli.errors import UniclError, escape_control


def check_form(*, as_json: bool, as_csv: bool) -> None:
    """Raise UniclError if the answers are asked for in two forms."""
    if as_json and as_csv:
        raise UniclError("--json: cannot be combined with --csv", "use one of them")


def check_inputs(inputs: list[str], *, stdin_image: bool) -> None:
    """Raise UniclError unless images are named and standard input is read at most once."""
    if stdin_image and inputs:
        raise UniclError("--stdin-image: cannot be combined with other inputs", "leave the other inputs out")
    if not stdin_image and not inputs:
        raise UniclError(
            "no images given",
            "name files, folders or quoted globs, or use - for a list on standard input, or --stdin-image",
        )
    if inputs.count("-") > 1:
        raise UniclError("-: standard input can be read only once", "use - once")


def check_any_exists(inputs: list[str], *, has_rows: bool) -> None:
    """Raise UniclError if each input names a file that is missing, unless JSON or CSV rows report it (``has_rows``)."""

    def is_missing(name: str) -> bool:
        is_url = name.lower().startswith(("http://", "https://"))
        return name != "-" and not is_url and not glob.has_magic(name) and not os.path.exists(name)  # noqa: PTH110 - False too for a name that is too long

    if has_rows or not inputs or not all(map(is_missing, inputs)):
        return
    if not sys.stdout.isatty():  # a program that reads the rows gets one for each image
        for name in inputs:
            sys.stdout.write(f"{escape_control(name)}\terror: no such file\n")
    if len(inputs) == 1:
        raise UniclError(f"{inputs[0]}: no such file", "check the path: it is the only image")
    raise UniclError(f"{len(inputs)} images: no such files, first {inputs[0]}", "check the paths")
