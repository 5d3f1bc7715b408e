"""The check that the corpora of a recipe are there, before any heavy library is loaded."""

from pathlib import Path

from unicl_cli.data.manifest import MANIFEST, read_manifest, splits_of
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.recipe.schema import Recipe


def check_corpora(recipe: Recipe) -> None:
    """Raise UniclError unless each corpus of the recipe is complete and has the split that the recipe names."""
    used = [(item.corpus, item.split) for item in recipe.data.train] + [(x.corpus, x.split) for x in recipe.eval]
    for corpus, split in dict.fromkeys(used):
        if not (Path(corpus) / MANIFEST).exists():
            raise UniclError(f"no finished corpus at {corpus}", f"make it, or finish it: unicl prepare … -o {corpus}")
        splits = splits_of(read_manifest(Path(corpus))[0].shards)
        if not set(splits) & ({split} if split else {"test", "val"}):
            raise UniclError(
                f"corpus {corpus} has no split '{split or 'test or val'}'{did_you_mean(split or 'test', splits)}",
                f"use one of its splits: {', '.join(splits)}",
            )
