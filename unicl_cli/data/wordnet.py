"""WordNet ids of ImageNet (`n01440764`) and their names, from tables that timm and open_clip ship."""

import importlib.util
from functools import cache
from pathlib import Path


@cache
def synsets() -> tuple[str, ...]:
    """Return the 1,000 synsets of ILSVRC 2012, sorted: a class's number is its position."""
    return tuple(_read_timm_table("imagenet_synsets.txt").split())


@cache
def lemmas() -> dict[str, tuple[str, ...]]:
    """Return every synset of ImageNet with its names."""
    lines = (line.split("\t", 1) for line in _read_timm_table("imagenet_synset_to_lemma.txt").splitlines())
    return {key: tuple(name.strip() for name in names.split(",")) for key, names in lines}


def names_of_synset(key: str) -> tuple[str, ...]:
    """Return a synset's names, the first as CLIP's prompts say it for ImageNet-1K; () if it is unknown."""
    spoken = _spoken_names().get(key)
    return tuple(dict.fromkeys(((spoken,) if spoken else ()) + lemmas().get(key, ())))


@cache
def _spoken_names() -> dict[str, str]:
    """Return the names of ImageNet-1K's classes by synset; open_clip itself, 3 s of imports, is not loaded."""
    spec = importlib.util.spec_from_file_location("imagenet_names", _folder_of("open_clip") / "zero_shot_metadata.py")
    if spec is None or spec.loader is None:
        raise ImportError("open_clip has no zero_shot_metadata")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(zip(synsets(), module.IMAGENET_CLASSNAMES, strict=True))


def _read_timm_table(name: str) -> str:
    """Read a table that timm ships; timm itself is not imported, because it imports torch."""
    return (_folder_of("timm") / "data" / "_info" / name).read_text(encoding="utf-8")


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "")
