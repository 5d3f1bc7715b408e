"""The short options of `unicl train` (--data, --size, --epochs, --batch) as changes to a recipe."""

from collections.abc import Sequence
from typing import Any

from unicl_cli.errors import UniclError
from unicl_cli.recipe.layers import Change, find_recipe, read_layers


def expand_short_options(
    source: str,
    corpora: Sequence[str],
    *,
    size: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
) -> list[Change]:
    """Return the changes that short options stand for; those of KEY=VALUE come after them.

    ``corpora`` take the place of the recipe's in `data.train`, with its other keys, and in the entries of `eval` that
    evaluate on these. Raises UniclError if their number fits neither one entry nor all.
    """
    changes = _replace_corpora(source, [str(corpus) for corpus in corpora]) if corpora else []
    given = {"data.image_size": size, "epochs": epochs, "batch.size": batch}
    return changes + [Change(key, value) for key, value in given.items() if value is not None]


def _replace_corpora(source: str, corpora: Sequence[str]) -> list[Change]:
    data = read_layers(find_recipe(source)).data
    old = _entries(data.get("data"), "train") or [{}]
    if len(old) not in (1, len(corpora)):
        raise UniclError(
            f"--data: given {len(corpora)} times, but the recipe has {len(old)} corpora",
            "give it once for each, in their order, or set data.train=[{corpus: …}]",
        )
    kept = old * len(corpora) if len(old) == 1 else old
    train = [{**entry, "corpus": corpus} for entry, corpus in zip(kept, corpora, strict=True)]
    new: dict[Any, list[str]] = {}
    for entry, corpus in zip(kept, corpora, strict=True):
        new.setdefault(entry.get("corpus"), []).append(corpus)
    evaluated = [
        {**entry, "corpus": corpus}
        for entry in _entries(data, "eval")
        for corpus in new.get(entry.get("corpus"), [entry.get("corpus")])
    ]
    return [Change("data.train", train), *([Change("eval", evaluated)] if evaluated else [])]


def _entries(section: Any, key: str) -> list[dict[str, Any]]:
    """Return the list of mappings at ``key`` of a section; what is not one is left for the checks of the recipe."""
    found = section.get(key) if isinstance(section, dict) else None
    if not isinstance(found, list):
        return []
    return [entry for entry in found if isinstance(entry, dict)]
