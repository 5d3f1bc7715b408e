"""The card (README.md) of an exported model: how it is used, and what it was trained on."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, cast

import yaml

from unicl_cli.build.load import Loaded
from unicl_cli.errors import escape_control
from unicl_cli.formats import count_of
from unicl_cli.recipe.layers import RESOLVED
from unicl_cli.recipe.text import write_yaml

MOST_CLASSES = 100
"""Classes that a card lists."""
PLACE = re.compile(r"(?P<form>local-dir:)?(/|~|[A-Za-z]:[\\/]|\w+://).*?(?P<name>[^/\\]*)[/\\]*", re.DOTALL)
"""An absolute path, or an address on another file system."""


def write_card(loaded: Loaded, repo: str | None, folder: str, licence: str | None) -> str:
    """Return the text of the card of a model called ``repo`` on the hub, or else by the name of its folder."""
    name = f"local-dir:{folder}" if repo is None else f"hf-hub:{repo}"
    place = "the folder of this file" if repo is None else 'or "local-dir:" and the folder of this file'
    facts = {
        **({} if licence is None else {"license": licence}),
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "unicl"],
    }
    names = [item.names[0] for item in loaded.classes]
    template = loaded.templates[0] if loaded.templates else "{}"
    words = [template.replace("{}", name).replace("{c}", name) for name in (names or ["cat", "dog"])[:3]]
    lines = [
        f"# {escape_control(repo or folder)}",
        "",
        "An image and a text tower in one space, trained with `unicl` and written by `unicl export`.",
        "",
        "```python",
        "import torch",
        "from open_clip import create_model_from_pretrained, get_tokenizer",
        "from PIL import Image",
        "",
        f"name = {json.dumps(name, ensure_ascii=False)}  # {place}",
        "model, preprocess = create_model_from_pretrained(name)",
        "model.eval()",
        "tokenizer = get_tokenizer(name)",
        "with torch.no_grad():",
        '    image = model.encode_image(preprocess(Image.open("photo.jpg"))[None], normalize=True)',
        f"    texts = model.encode_text(tokenizer({[escape_control(word) for word in words]!r}), normalize=True)",
        f"    print({_score(loaded)})",
        "```",
        "",
        f"{_code(f'unicl zeroshot photo.jpg --model {shlex.quote(name)} --classes a,b')} does the same.",
    ]
    return (
        f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n" + "\n".join([*lines, *_training(loaded, names)]) + "\n"
    )


def _score(loaded: Loaded) -> str:
    """Return the code that turns the vectors ``image`` and ``texts`` into probabilities, as the model's loss does."""
    loss: Any = loaded.step.loss
    logits = "model.logit_scale.exp() * image @ texts.T"
    if getattr(loss, "activation", "softmax") == "softmax":
        return f"({logits}).softmax(1)"
    return f"({logits}{'' if getattr(loss, 'bias', None) is None else ' + model.logit_bias'}).sigmoid()"


def _training(loaded: Loaded, names: list[str]) -> list[str]:
    """Return the lines on a run: corpora, classes, prompts and recipe; none for a published model."""
    recipe = Path(loaded.name) / RESOLVED
    if not recipe.is_file():
        return []
    lines = ["", "## Training", "", f"Corpora: {', '.join(_code(Path(name).name) for name in loaded.corpora)}."]
    if names:
        shown = ", ".join(_code(name) for name in names[:MOST_CLASSES])
        more = f" and {len(names) - MOST_CLASSES:,} more" if len(names) > MOST_CLASSES else ""
        lines += ["", f"Trained with {count_of(len(names), 'class', 'classes')}: {shown}{more}."]
    if loaded.templates:
        lines += ["", f"Prompts: {', '.join(_code(template) for template in loaded.templates[:3])}"]
        lines[-1] += f" and {len(loaded.templates) - 3} more." if len(loaded.templates) > 3 else "."
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    settings.pop("run_dir", None)
    return [*lines, "", "```yaml", write_yaml(without_places(settings)).rstrip(), "```"]


def without_places(value: Any) -> Any:
    """Return a part of a recipe with the names of files and folders alone: where they lie is not for everyone."""
    if isinstance(value, dict):
        return {key: without_places(part) for key, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [without_places(part) for part in cast("list[Any]", value)]
    found = PLACE.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else (found["form"] or "") + found["name"]


def _code(text: str) -> str:
    """Return a text as Markdown's code, on one line."""
    return f"`{escape_control(text).replace('`', chr(39))}`"
