"""Short names and letters of the models that are compared, for tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath
from string import ascii_uppercase

from unicl_cli.storage import hub

MOST = len(ascii_uppercase)
"""Models that can be compared at once."""


def letters(models: Sequence[str]) -> list[str]:
    """Return A, B, C, … for the models, in their order."""
    return list(ascii_uppercase[: len(models)])


def short_names(models: Sequence[str]) -> list[str]:
    """Return the names without the folders that all runs and checkpoints have in common."""
    folders = [str(PurePath(model).parent) for model in models if not hub.has_form(model)]
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # none, or relative and absolute ones
        return list(models)
    return [model if hub.has_form(model) else str(PurePath(model).relative_to(common or ".")) for model in models]
