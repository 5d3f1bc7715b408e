"""Typed settings of a command from a YAML file, with every problem reported at its line; for plugins."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.formats import count_of
from unicl_cli.problems import problems_of
from unicl_cli.recipe.layers import apply_overrides, read_recipe_file, require_mapping
from unicl_cli.recipe.load import format_problems
from unicl_cli.recipe.schema import Section
from unicl_cli.yaml_lines import parse_yaml

S = TypeVar("S", bound=Section)


def load_settings(source: str, kind: type[S], shipped: Path, overrides: Sequence[str] = ()) -> S:
    """Load settings of a ``kind``: ``source`` is a file, or the name of one in the folder ``shipped``.

    ``overrides`` are KEY=VALUE. Raises UniclError with every problem at its line.
    """
    names = {path.stem: path for path in sorted(shipped.glob("*.yaml"))}
    path = Path(source) if Path(source).is_file() else names.get(source)
    if path is None:
        raise UniclError(
            f"no settings '{source}'{did_you_mean(source, list(names))}",
            f"use a YAML file, or one of the shipped settings: {', '.join(names)}",
        )
    lined = apply_overrides(require_mapping(parse_yaml(read_recipe_file(path), str(path)), str(path)), overrides)
    try:
        return kind.model_validate(lined.data)
    except ValidationError as error:
        problems = problems_of(error, lined.data, kind.model_json_schema())
        raise UniclError(
            f"{count_of(len(problems), 'problem')} in the settings",
            f"use these keys: {', '.join(kind.model_fields)}",
            details=format_problems(problems, lined.marks),
        ) from error
