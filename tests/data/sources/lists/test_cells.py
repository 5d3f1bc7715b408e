"""Values inside of cells: what is neither JSON nor a value of Python stays a text."""

import pytest

from unicl_cli.data.sources.lists.cells import look_up, parse_list, texts_of
from unicl_cli.data.sources.lists.json_values import parse_value


@pytest.mark.parametrize(
    "text",
    ["{{}}", "{[]: 'a'}", "{{}: 1}", "[{[]}]", "[{**{}}]", "[" * 9000, "{1: -'a'}", "[1j, f'a']", "[1 if", "[\0]"],
)
def test_a_cell_that_python_cannot_evaluate_is_plain_text(text: str):
    assert texts_of(text, "caption") == [text]
    assert look_up({"caption": text}, "caption.raw") is None
    assert parse_list(text) is None


def test_a_key_that_comes_twice_is_found_at_once():
    """A search for each key would take minutes."""
    keys = ", ".join(f'"{number}": 0' for number in range(100_000))
    with pytest.raises(ValueError, match="duplicate key '99999'"):
        parse_value(f'{{{keys}, "99999": 0}}')
