"""Whatever a recipe holds, `recipes validate` says so in lines: no text, tree or override ends in a traceback."""

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.cli import main
from unicl_cli.recipe.layers import builtin_folder
from unicl_cli.recipe.load import load
from unicl_cli.recipe.text import as_mapping

BASES = ("digits-base", "digits-supcon", "imagenet-base")
TEXTS = {name: (builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8") for name in BASES}
TREES = {name: as_mapping(load(name)) for name in BASES}
FILE = Path(tempfile.gettempdir()) / f"unicl-fuzz-{os.getpid()}.yaml"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["timm", "unicl", "cbow", "corpus", "auto", "digits-base", "", "~", "1e400", "0x", "0o9", "-_1", "+_"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("name"), inner, max_size=3)
    ),
    max_leaves=6,
)
MANY = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def clean():
    yield
    FILE.unlink(missing_ok=True)


def validate(*overrides: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["recipes", "validate", str(FILE), "--", *overrides])
    return code, err.getvalue()


def judged(code: int, said: str) -> None:
    assert code in (0, 2), said
    assert "Traceback" not in said
    assert code == 0 or said.startswith("error: "), said


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(found for key, item in items for found in places(item, (*at, key)))]


def replaced(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[at[0]] = replaced(tree[at[0]], at[1:], value)
    return copy


@MANY
@given(st.sampled_from(BASES), st.data())
def test_a_tree_with_some_values_replaced(base: str, data: st.DataObject):
    tree = TREES[base]
    for _ in range(data.draw(st.integers(1, 3))):
        tree = replaced(tree, data.draw(st.sampled_from(places(tree))), data.draw(VALUES))
    with FILE.open("w", encoding="utf-8") as file:
        yaml.safe_dump(tree, file, allow_unicode=True)
    judged(*validate())


@MANY
@given(st.sampled_from(BASES), st.data())
def test_a_text_with_some_places_changed(base: str, data: st.DataObject):
    text = TEXTS[base]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 6))
        put = data.draw(
            st.text(max_size=4)
            | st.sampled_from([": ", "- ", "{", "}", "[", "&a ", "*a", "<<: ", "!!int ", "\t", "\n"])
        )
        text = text[:at] + put + text[at + gone :]
    FILE.write_text(text, encoding="utf-8", errors="replace")
    judged(*validate())


@MANY
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes):
    FILE.write_bytes(content)
    judged(*validate())


KEYS = [
    "optim.lr",
    "loss",
    "model",
    "model.image",
    "data",
    "data.train",
    "data.train.0",
    "data.train.x",
    "steps",
    "stages",
    "stages.0",
    "eval.0.corpus",
    "extends",
    "version",
    "model.text.width",
    "data.augment.name",
    "a..b",
    ".",
    "checkpoint.best",
]


@MANY
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS) | st.text(max_size=6), VALUES | st.text(max_size=8)), min_size=1, max_size=3
    )
)
def test_any_overrides(changes: list[tuple[str, Any]]):
    FILE.write_text(TEXTS["digits-base"], encoding="utf-8")
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes]
    judged(*validate(*words))
