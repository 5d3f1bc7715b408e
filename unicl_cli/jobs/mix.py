"""`unicl mix`: weights interpolated between a model and its fine-tuned self, and the best point of the curve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.table import Table
from torch import Tensor

from unicl_cli.build.init import same_tokens, source_settings
from unicl_cli.build.load import Loaded, load_model
from unicl_cli.build.model import TOWERS
from unicl_cli.core import checkpoint, checkpoint_files, hub
from unicl_cli.core.dist import barrier, rank
from unicl_cli.core.files import write_atomic
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.tables import make_table, percent
from unicl_cli.jobs.evaluate import measure_validation
from unicl_cli.runs.folder import META, find_run

if TYPE_CHECKING:
    from unicl_cli.data.corpus import Corpus

SELECTION_SPLITS = ("val", "test")
"""Splits to choose the best mixture on, in order of preference."""
COPIED_FILES = ("resolved.yaml", "recipe.yaml", "classes.json", "tokenizer.json")
"""Files of a run that are copied into a mixture."""


class MixPair(NamedTuple):
    """Two models of one architecture. The mixture keeps the classes, prompts and files of ``base``."""

    old: Loaded
    new: Loaded
    base: Loaded
    from_tensors: dict[str, Tensor]
    to_tensors: dict[str, Tensor]

    def interpolated(self, alpha: float) -> dict[str, Tensor]:
        """Return (1 - alpha) old + alpha new for every tensor, also the log of the scale (WiSE-FT, CVPR 2022, eq. 1).

        Integer tensors (counters) come from the nearer model. 0 and 1 give the old and new weights bit for bit.
        """
        return {name: interpolate(x, self.to_tensors[name], alpha) for name, x in self.from_tensors.items()}


def interpolate(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    """Interpolate in float64 and round once; alpha 0 and 1 return the tensors themselves."""
    if alpha in (0, 1) or not old.is_floating_point():
        return new if alpha >= 0.5 else old
    return ((1 - alpha) * old.double() + alpha * new.double()).to(new.dtype)


def mix_models(
    names: tuple[str, str],
    *,
    alphas: Sequence[float],
    out: Path | None,
    data: Sequence[str] | None,
    split: str | None,
    batch: int,
    accelerator: Any,
) -> dict[str, Any]:
    """Return the document of `unicl mix`, the same on every rank; of several alphas, write the best one.

    The best has the highest mean score over the data sets: top 1, or recall at 1 if there are no labels.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UniclError(f"-o {out}: already exists", "choose another folder")
    both = check_pair(load_model(names[0]), load_model(names[1]))
    document: dict[str, Any] = {"schema": "unicl/mix/1", "old": both.old.name, "new": both.new.name}
    best = alphas[0]
    if data or len(alphas) > 1:
        corpora = open_splits(both, data, split)
        document["curve"] = measure_curve(both, alphas, corpora, batch=batch, accelerator=accelerator)
        best = max(document["curve"], key=lambda point: point["mean"])["alpha"]
        warned = [
            f"{corpus.name}: alpha was chosen on the test split, so the result there is optimistic"
            for corpus, chosen in corpora
            if chosen == "test" and len(alphas) > 1
        ]
        document |= {"warnings": warned} if warned else {}
    document["alpha"] = best
    if out is not None:
        if rank() == 0:
            write_mixture(both, best, out)
        barrier()
        document["out"] = str(out)
    return document


def check_pair(old: Loaded, new: Loaded) -> MixPair:
    """Pair two models. Raise UniclError unless they have the same tensors and tokens, and a way to score."""
    base, other = (old, new) if is_published(new) and not is_published(old) else (new, old)
    mine, theirs = ({n: x.clone() for n, x in checkpoint.weights(each.step).items()} for each in (base, other))
    if is_published(other) and not is_published(base):
        heads = {name: x for name, x in mine.items() if name.startswith("loss.")}
        if heads and base.step.loss.score == "head":
            raise UniclError(
                f"{base.name}: classifies with a head, which {other.name} does not have",
                "mix it with a run that has a head, or fine-tune with a loss that scores by text (unicl, clip)",
            )
        theirs = theirs | heads
    check_same_tensors(theirs, mine, other.name, base.name)
    check_settings(old, new)
    first, second = (theirs, mine) if base is new else (mine, theirs)
    return MixPair(old, new, base, first, second)


def is_published(loaded: Loaded) -> bool:
    """Return True for weights that do not come from `unicl train`."""
    return hub.has_form(loaded.name)


def check_same_tensors(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor], other: str, base: str) -> None:
    """Raise UniclError unless names and shapes are equal."""
    alone = [sorted(a.keys() - b.keys()) for a, b in ((theirs, mine), (mine, theirs))]
    if any(alone):
        extra = [
            f"{len(n)} tensors are only in {o} ({n[0]}, …)" for n, o in zip(alone, (other, base), strict=True) if n
        ]
        raise UniclError(
            f"{other} and {base} are different models: {', '.join(extra)}", "choose a NEW that was fine-tuned from OLD"
        )
    for name, x in theirs.items():
        if x.shape != mine[name].shape:
            shapes = f"{tuple(x.shape)} in {other}, {tuple(mine[name].shape)} in {base}"
            raise UniclError(f"{name}: is {shapes}, so the models differ", "choose a NEW that was fine-tuned from OLD")


def check_settings(old: Loaded, new: Loaded) -> None:
    """Raise UniclError if settings that shapes do not show differ: heads, activations, pooling, tokens."""
    for first, second in zip(source_settings(old), source_settings(new), strict=True):
        keys = sorted(first.keys() | second.keys()) if first and second else []
        changed = [key for key in keys if (first.get(key) or None) != (second.get(key) or None)]  # absent is off
        if changed:
            raise UniclError(
                f"{old.name} and {new.name} are different models: {', '.join(changed)} differ",
                "choose a NEW that was fine-tuned from OLD",
            )
    if not same_tokens(old.tokenizer, new.tokenizer):
        raise UniclError(
            f"{old.name} and {new.name} have different tokens", "choose a NEW that was fine-tuned from OLD"
        )


def open_splits(both: MixPair, data: Sequence[str] | None, split: str | None) -> list[tuple[Corpus, str]]:
    """Open the corpora to measure on, by default those of the recipe, each with its split."""
    paths = list(dict.fromkeys(data or both.base.corpora))
    if not paths:
        raise UniclError(f"model {both.base.name}: names no corpus to measure on", "give one with --data CORPUS")
    corpora = [open_corpus(Path(path)) for path in paths]
    usual = [next((name for name in SELECTION_SPLITS if name in each.splits), None) for each in corpora]
    return [(each, each.eval_split(split or own)) for each, own in zip(corpora, usual, strict=True)]


def measure_curve(
    both: MixPair, alphas: Sequence[float], corpora: Sequence[tuple[Corpus, str]], *, batch: int, accelerator: Any
) -> list[dict[str, Any]]:
    """Measure each alpha: the figures of every data set, and their mean."""
    step = both.base.step
    step.to(accelerator.device)
    points: list[dict[str, Any]] = []
    for alpha in alphas:
        checkpoint.load_weights(step, both.interpolated(alpha), f"alpha {alpha:g}")
        entries: list[dict[str, Any]] = []
        for corpus, split in corpora:
            with accelerator.autocast():
                figures = measure_validation(both.base, corpus, split, batch=batch)
            if not figures:
                raise UniclError(
                    f"corpus {corpus.path}, split {split}: nothing to measure {both.base.name} on",
                    "choose a split with labels, or with texts and a model that was trained on texts",
                )
            entries.append({"name": corpus.name, "split": split, **figures})
        points.append({"alpha": alpha, "data": entries, "mean": sum(map(entry_score, entries)) / len(entries)})
    return points


def entry_score(entry: Mapping[str, Any]) -> float:
    """Return top 1, or the mean recall at 1 of both directions."""
    found = [value for name, value in entry.items() if name.endswith("_r1")]
    return float(entry["top1"]) if "top1" in entry else sum(found) / len(found)


def write_mixture(both: MixPair, alpha: float, out: Path) -> None:
    """Write a run directory like the base's, or open_clip's layout if both are published; meta.json comes last."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = both.interpolated(alpha)
    facts = {"schema": "unicl/model/1", "mixed": {"old": both.old.name, "new": both.new.name, "alpha": alpha}}
    try:
        if is_published(both.base):
            from unicl_cli.encoders.open_clip import published_tensors  # loaded already, unlike for a run

            checkpoint.load_weights(both.base.step, tensors, both.base.name)
            cast("Any", both.base.step.model).text.store(out)
            model = published_tensors(both.base.step.model)
            checkpoint.write_tensors(out / hub.WEIGHTS[0], {name: x.cpu().contiguous() for name, x in model.items()})
        else:
            copy_run_files(find_run(both.base.name)[0], out)
            checkpoint.write_tensors(
                out / checkpoint_files.MODEL, {name: x.cpu().contiguous() for name, x in tensors.items()}
            )
        write_atomic(out / META, json.dumps(facts, indent=1))
    except OSError as error:
        raise UniclError(f"-o {out}: cannot be written: {error.strerror}", "choose another folder") from error


def copy_run_files(run: Path, out: Path) -> None:
    """Copy the files of a run other than its weights."""
    for name in COPIED_FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    if (run / TOWERS).is_dir():
        shutil.copytree(run / TOWERS, out / TOWERS, dirs_exist_ok=True)


def mix_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the curve in percent; the star marks the mixture with the highest mean."""
    if "curve" not in document:
        return
    data = document["curve"][0]["data"]
    measured = [f"{entry['name']} {entry['split']}\n{name}" for entry in data for name in figure_names(entry)]
    table = make_table(f"{document['old']} → {document['new']}", (), ("alpha", *measured, "mean"))
    for point in document["curve"]:
        cells = [percent(entry[name]) for entry in point["data"] for name in figure_names(entry)]
        star = " *" if point["alpha"] == document["alpha"] else ""
        table.add_row(f"{point['alpha']:g}", *cells, f"{percent(point['mean'])}{star}")
    yield table


def figure_names(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of the figures that the table shows: top 1 and the recalls at 1."""
    return [name for name in entry if name == "top1" or name.endswith("_r1")]
