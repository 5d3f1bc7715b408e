"""Settings of a command: files, shipped names and changes, and every problem at its line."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from unicl_cli.errors import UniclError
from unicl_cli.recipe.schema import Section
from unicl_cli.recipe.settings import load_settings


class Oven(Section):
    heat: Annotated[float, Field(gt=0)] = 180
    trays: int = 1


def test_a_file_a_shipped_name_and_changes_give_typed_settings(tmp_path: Path) -> None:
    (tmp_path / "bread.yaml").write_text("heat: 2e2\n")
    assert load_settings("bread", Oven, tmp_path) == Oven(heat=200.0)
    assert load_settings(str(tmp_path / "bread.yaml"), Oven, Path("nowhere"), ["trays=3"]) == Oven(heat=200.0, trays=3)


@pytest.mark.parametrize(
    ("text", "changes", "lines"),
    [
        ("heat: 0\ntray: 2\n", (), ["bread.yaml:1: heat: ", "bread.yaml:2: tray: unknown key; did you mean 'trays'?"]),
        ("heat: 1\n", ("trays=x",), ["command line (trays=x): trays: should be a valid integer, got 'x'"]),
    ],
)
def test_problems_stand_at_their_lines(tmp_path: Path, text: str, changes: tuple[str, ...], lines: list[str]) -> None:
    (tmp_path / "bread.yaml").write_text(text)
    with pytest.raises(UniclError) as caught:
        load_settings("bread", Oven, tmp_path, changes)
    assert caught.value.hint == "use these keys: heat, trays"
    assert all(any(line in found for found in caught.value.lines[1:]) for line in lines)


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "bread.yaml").write_text("{}\n")
    with pytest.raises(UniclError, match=r"no settings 'bred'; did you mean 'bread'\?") as caught:
        load_settings("bred", Oven, tmp_path)
    assert caught.value.hint == "use a YAML file, or one of the shipped settings: bread"
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UniclError, match="not a mapping of keys"):
        load_settings("list", Oven, tmp_path)
