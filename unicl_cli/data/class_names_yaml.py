"""Class names in the YAML file of a YOLO data set: the list or map below ``names``."""

from typing import cast

import yaml

from unicl_cli.data.class_entry import FORMS, find_repeated
from unicl_cli.errors import UniclError


def load_names(text: str, origin: str) -> list[str] | dict[str, str]:
    """Return what stands below ``names``, each scalar as it is written. UniclError if it is not one name a class."""
    try:
        document = yaml.compose(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:  # brackets may be nested without end
        raise UniclError(f"{origin}: not valid YAML: {str(error).splitlines()[0]}", FORMS) from error
    entries = document.value if isinstance(document, yaml.MappingNode) else []
    held = {key.value: value for key, value in entries if isinstance(key, yaml.ScalarNode)}
    names = held.get("names")
    if isinstance(names, yaml.SequenceNode):
        texts = [_text(node, origin) for node in names.value]
    elif isinstance(names, yaml.MappingNode):
        texts = [(_text(key, origin), _text(name, origin)) for key, name in names.value]
    else:
        raise UniclError(f"{origin}: no list or map of class names below the key 'names'", FORMS)
    count = held.get("nc")
    if count is not None and count.value != str(len(texts)):
        raise UniclError(f"{origin}: nc is {count.value}, and names has {len(texts)}", "write one name for each class")
    if isinstance(names, yaml.SequenceNode):
        return cast("list[str]", texts)
    if (repeated := find_repeated(key for key, _ in texts)) is not None:
        raise UniclError(f"{origin}: duplicate key '{repeated}'", "give each class one line")
    return dict(cast("list[tuple[str, str]]", texts))


def _text(node: yaml.Node, origin: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UniclError(f"{origin}: an entry of 'names' is not a text", FORMS)
    return node.value
