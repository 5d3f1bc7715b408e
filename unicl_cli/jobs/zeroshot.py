"""Pictures of the user's own scored against classes of the user's own, one row each, in the order given."""

from __future__ import annotations

import csv
import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.core.dist import gather, rank, world_size
from unicl_cli.data.pictures import SUFFIXES, PictureError
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.metrics import best
from unicl_cli.jobs.encoding import Encoder, ahead
from unicl_cli.jobs.scoring import Scorer, scorer_for

if TYPE_CHECKING:
    from unicl_cli.load import Loaded

REASONS = {
    "empty": "an empty file",
    "not_image": "not a picture",
    "unsupported_format": "a picture format that cannot be read (SVG, HEIC)",
    "bomb": "too many pixels",
    "truncated": "a picture that is cut off",
}
"""What `PictureError.reason` means to a user; of others its detail says more."""


class Picture(NamedTuple):
    """A path as it is shown; ``problem`` says why there is nothing to read."""

    path: str
    problem: str | None = None


class Classes(NamedTuple):
    """What `--classes` says, and what to tell the user about it."""

    names: tuple[ClassName, ...]
    warnings: tuple[str, ...]


def pictures_of(inputs: Sequence[str]) -> list[Picture]:
    """Files as they are, folders with all pictures below them, globs; what holds nothing stays as a problem."""
    found: list[Picture] = []
    for name in inputs:
        found += one_input(name)
    return found


def one_input(name: str) -> list[Picture]:
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_picture(file.relative_to(path)) and file.is_file())
        return [Picture(str(file)) for file in files] or [Picture(name, "a folder without pictures")]
    if path.exists():
        return [Picture(name)]
    if glob.has_magic(name):
        files = sorted(match for match in glob.iglob(name, recursive=True) if Path(match).is_file())  # noqa: PTH207 - absolute patterns
        return [Picture(file) for file in files] or [Picture(name, "the pattern matches no file")]
    return [Picture(name, "no such file")]


def is_picture(path: Path) -> bool:
    return path.suffix[1:].lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def parse_classes(spec: str) -> Classes:
    """``a,b,"c, d"``, or ``@file`` with a class a line; ``name=alias1|alias2`` gives a class several names.

    Blanks around names are dropped, of equal classes all but the first.
    """
    if spec.startswith("@"):
        try:
            cells = Path(spec[1:]).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise UniclError(f"--classes {spec}: {why}", "give a text file with one class a line") from error
    else:
        if spec.count('"') % 2:  # the reader would take the rest for one name
            raise UniclError(f"--classes {spec}: a quote has no partner", 'write a,b,"c, d"')
        cells = [cell for row in csv.reader(spec.splitlines(), skipinitialspace=True) for cell in row]
    names: dict[str, ClassName] = {}
    repeated: dict[str, None] = {}
    for cell in cells:
        name, _, aliases = (part.strip() for part in cell.partition("="))
        if not name:
            continue
        if name in names:
            repeated[name] = None
        names.setdefault(
            name, ClassName(name, (name, *(alias.strip() for alias in aliases.split("|") if alias.strip())))
        )
    if not names:
        raise UniclError(
            f"--classes {spec}: names no class", "for example --classes 'cat,dog', or --classes @names.txt"
        )
    warnings = [f"--classes names {', '.join(repeated)} more than once"] if repeated else []
    return Classes(tuple(names.values()), tuple(warnings))


def zeroshot_scorer(loaded: Loaded, classes: Sequence[ClassName] | None, accelerator: Any) -> Scorer:
    """The scorer for these classes, or for the model's own."""
    if classes is None and not loaded.classes:
        raise UniclError(f"model {loaded.name} has no classes of its own", "name some: --classes cat,dog")
    encoder = Encoder(loaded, accelerator.autocast)
    return scorer_for(encoder, loaded.classes if classes is None else classes, all_names=classes is not None)


def read(picture: Picture, transform: Callable[[bytes], Tensor]) -> Tensor | str:
    """uint8 (3, H, W), or why there is none."""
    if picture.problem is not None:
        return picture.problem
    try:
        return transform(Path(picture.path).read_bytes())
    except PictureError as error:
        return REASONS.get(error.reason, error.detail)
    except OSError as error:
        return error.strerror or type(error).__name__


def blocks(n: int, batch: int) -> list[range]:
    """Places that all ranks work on together, at most ``batch`` each."""
    size = batch * world_size()
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def my_part(block: range) -> list[int]:
    """This rank's places of a block; every rank has as many, the last one repeated."""
    each = -(-len(block) // world_size())
    return [min(block.start + rank() * each + place, block.stop - 1) for place in range(each)]


def zeroshot(
    loaded: Loaded,
    pictures: Sequence[Picture],
    scorer: Scorer,
    names: Sequence[str],
    *,
    top_k: int,
    batch: int,
) -> Iterator[list[dict[str, Any]]]:
    """Rows for each batch of pictures, on every rank the same: ``{"path", "label", "prob", "top", "error"}``.

    A picture that cannot be read has ``error`` and no label. Probabilities are relative to these classes.
    """
    transform = loaded.transform
    plan = blocks(len(pictures), batch)
    mine = (pictures[place] for block in plan for place in my_part(block))
    for block, part in zip(plan, ahead(mine, partial(read, transform=transform), batch), strict=True):
        blank = torch.zeros(3, *transform.size, dtype=torch.uint8)
        good = torch.tensor([isinstance(item, Tensor) for item in part])
        scores = scorer.scores(torch.stack([item if isinstance(item, Tensor) else blank for item in part]))
        scores = gather(scores)[: len(block)]
        probabilities = scorer.probabilities(scores).cpu()
        good = gather(good.to(scores.device))[: len(block)].cpu()
        refuse_nan(loaded, probabilities[good])
        values, order = best(scores.cpu(), top_k)
        yield [
            answer(pictures[place].path, values[row], order[row], probabilities[row], names, cosines=scorer.cosines)
            if good[row]
            else failure(pictures[place], read(pictures[place], transform))
            for row, place in enumerate(block)
        ]


def refuse_nan(loaded: Loaded, probabilities: Tensor) -> None:
    if bool(probabilities.isnan().any()):
        raise UniclError(f"non-finite features from {loaded.name}", "the weights have diverged", exit_code=1)


def answer(
    path: str, values: Tensor, order: Tensor, probabilities: Tensor, names: Sequence[str], *, cosines: bool
) -> dict[str, Any]:
    """The row of a picture: its best classes, best first; ``cosine`` is null for a model that has none."""
    top = [
        {
            "label": names[label],
            "prob": round(float(probabilities[label]), 6),
            "cosine": round(value, 6) if cosines else None,
        }
        for label, value in zip(order.tolist(), values.tolist(), strict=True)
    ]
    return {"path": path, "label": top[0]["label"], "prob": top[0]["prob"], "top": top, "error": None}


def failure(picture: Picture, problem: Tensor | str) -> dict[str, Any]:
    """The row of a picture without answer. ``problem`` was read again, since another rank may have met it."""
    why = problem if isinstance(problem, str) else "could not be read at first"
    return {"path": picture.path, "label": None, "prob": None, "top": [], "error": why}
