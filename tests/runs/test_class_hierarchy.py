"""`classes.json` whose classes have groups and parents: refused unless the parents form trees."""

import json

import pytest

from unicl_cli.build.load import read_classes
from unicl_cli.errors import UniclError


def write(folder, *parents):
    classes = [{"key": f"k{n}", "names": [f"n{n}"], "group": f"g{n}", "parent": own} for n, own in enumerate(parents)]
    whole = {"classes": classes, "templates": ["{}"], "context_length": 8}
    (folder / "classes.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("parents", "told"),
    [(("k1", "k0"), "above itself"), (("k0",), "above itself"), (("", "gone"), "'gone' is a parent, but not a class")],
)
def test_a_cycle_or_a_parent_that_is_not_there_is_one_line(tmp_path, parents, told):
    write(tmp_path, *parents)
    with pytest.raises(UniclError, match=told):
        read_classes(tmp_path)


def test_sound_parents_are_read(tmp_path):
    write(tmp_path, "", "k0", "k1")
    assert [item.parent for item in read_classes(tmp_path)[0]] == ["", "k0", "k1"]
