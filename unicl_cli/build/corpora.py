"""The check that the corpora of a recipe are there, before any heavy library is loaded."""

from unicl_cli.data.manifest import MANIFEST, read_manifest, splits_of
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.recipe.schema import Recipe
from unicl_cli.storage.remote import place_of

NO_VALIDATION = "; or prepare it with --holdout 0.2, or train without validation: eval=[]"
"""The end of the hint where the split of an evaluation is missing."""


def check_corpora(recipe: Recipe) -> None:
    """Raise UniclError, with the key, unless each corpus of the recipe is complete and has the split that it names."""
    used = [(f"data.train.{n}.corpus", item.corpus, item.split) for n, item in enumerate(recipe.data.train)]
    used += [(f"eval.{n}.corpus", item.corpus, item.split) for n, item in enumerate(recipe.eval)]
    for key, corpus, split in used:
        folder = place_of(corpus)
        if not (folder / MANIFEST).exists():
            raise UniclError(
                f"{key}: no finished corpus at {corpus}", f"make it, or finish it: unicl prepare … -o {corpus}"
            )
        splits = splits_of(read_manifest(folder)[0].shards)
        if not set(splits) & ({split} if split else {"test", "val"}):
            others = "" if key.startswith("data") else NO_VALIDATION
            raise UniclError(
                f"{key}: corpus {corpus} has no split '{split or 'test or val'}'"
                f"{did_you_mean(split or 'test', splits)}",
                f"use one of its splits: {', '.join(splits)}{others}",
            )
