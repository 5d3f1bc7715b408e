"""A small recipe with changes, and the message of the error that a call raises."""

from collections.abc import Callable

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe

SMALL = """
name: small
data:
  train: [{corpus: c}]
model:
  image: cnn
  text: {name: transformer, width: 64}
loss: {name: unicl, tile: 8}
steps: 5
"""


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(UniclError) as caught:
        call()
    return caught.value.message


def small(*overrides: str) -> Recipe:
    return load_text(SMALL, "small.yaml", overrides)
