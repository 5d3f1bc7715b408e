"""`unicl mix`: old weights and those fine-tuned from them, interpolated; the curve in between, and the best of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from torch import Tensor

from unicl_cli.build.init import same_tokens, settings_of
from unicl_cli.build.load import Loaded, load_model
from unicl_cli.build.model import TOWERS, owned
from unicl_cli.core import checkpoint, hub
from unicl_cli.core.checkpoint_files import MODEL
from unicl_cli.core.dist import barrier, rank
from unicl_cli.core.files import write_atomic
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.jobs.evaluate import chosen_split, validate
from unicl_cli.runs.folder import CLASSES, META, RECIPE, RESOLVED, TOKENIZER, find_run

if TYPE_CHECKING:
    from unicl_cli.data.corpus import Corpus

CHOSEN_ON = ("val", "test")
"""Where the best mixture is chosen, unless a split is named."""
KEPT = (RESOLVED, RECIPE, CLASSES, TOKENIZER)
"""Files of a run that its mixtures share."""


class Pair(NamedTuple):
    """Two models of one architecture. ``base`` is the one whose classes, prompts and files the mixture keeps."""

    old: Loaded
    new: Loaded
    base: Loaded
    from_tensors: dict[str, Tensor]
    to_tensors: dict[str, Tensor]

    def at(self, alpha: float) -> dict[str, Tensor]:
        """(1 - alpha) old + alpha new of every tensor (WiSE-FT, CVPR 2022, eq. 1), the logarithm of the scale included.

        What is no float (a counter) is the nearer one's. 0 gives the old weights and 1 the new ones, bit for bit.
        """
        return {name: between(x, self.to_tensors[name], alpha) for name, x in self.from_tensors.items()}


def between(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    """In float64, rounded once; the ends are the tensors themselves."""
    if alpha in (0, 1) or not old.is_floating_point():
        return new if alpha >= 0.5 else old
    return ((1 - alpha) * old.double() + alpha * new.double()).to(new.dtype)


def mix(
    names: tuple[str, str],
    *,
    alphas: Sequence[float],
    out: Path | None,
    data: Sequence[str] | None,
    split: str | None,
    batch: int,
    accelerator: Any,
) -> dict[str, Any]:
    """The document of `unicl mix`, the same on every rank. Several alphas are measured, and the best one is written.

    The best is that of the highest mean over the data sets: of top 1, or of recall at 1 where there are no labels.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UniclError(f"-o {out}: is there already", "give another folder")
    both = pair(load_model(names[0]), load_model(names[1]))
    document: dict[str, Any] = {"schema": "unicl/mix/1", "old": both.old.name, "new": both.new.name}
    best = alphas[0]
    if data or len(alphas) > 1:
        corpora = opened(both, data, split)
        document["curve"] = curve(both, alphas, corpora, batch=batch, accelerator=accelerator)
        best = max(document["curve"], key=lambda point: point["mean"])["alpha"]
        warned = [
            f"{corpus.name}: alpha is chosen on split test, so the figure there is optimistic"
            for corpus, chosen in corpora
            if chosen == "test" and len(alphas) > 1
        ]
        document |= {"warnings": warned} if warned else {}
    document["alpha"] = best
    if out is not None:
        if rank() == 0:
            write(both, best, out)
        barrier()
        document["out"] = str(out)
    return document


def pair(old: Loaded, new: Loaded) -> Pair:
    """The two, checked: the same tensors, the same tokens, something that scores."""
    base, other = (old, new) if is_published(new) and not is_published(old) else (new, old)
    mine, theirs = ({n: x.clone() for n, x in checkpoint.weights(each.step).items()} for each in (base, other))
    if is_published(other) and not is_published(base):
        heads = {name: x for name, x in mine.items() if name.startswith("loss.")}
        if heads and base.step.loss.score == "head":
            raise UniclError(
                f"{base.name} classifies with a head that {other.name} does not have",
                "mix it with a run that has one, or fine-tune with a loss that scores by text (unicl, clip)",
            )
        theirs = theirs | heads
    check_same(theirs, mine, other.name, base.name)
    check_settings(old, new)
    first, second = (theirs, mine) if base is new else (mine, theirs)
    return Pair(old, new, base, first, second)


def is_published(loaded: Loaded) -> bool:
    """Weights from elsewhere, not from `unicl train`."""
    return hub.has_form(loaded.name)


def check_same(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor], other: str, base: str) -> None:
    """Names and shapes, exactly."""
    alone = [sorted(a.keys() - b.keys()) for a, b in ((theirs, mine), (mine, theirs))]
    if any(alone):
        told = [f"{len(n)} tensors are only in {o} ({n[0]}, …)" for n, o in zip(alone, (other, base), strict=True) if n]
        raise UniclError(
            f"{other} and {base} are different models: {', '.join(told)}", "NEW has to be fine-tuned from OLD"
        )
    for name, x in theirs.items():
        if x.shape != mine[name].shape:
            shapes = f"{tuple(x.shape)} in {other}, {tuple(mine[name].shape)} in {base}"
            raise UniclError(f"{name} is {shapes}: these are different models", "NEW has to be fine-tuned from OLD")


def check_settings(old: Loaded, new: Loaded) -> None:
    """What shapes do not show: heads, activations, pooling, tokens."""
    for first, second in zip(settings_of(old), settings_of(new), strict=True):
        keys = sorted(first.keys() | second.keys()) if first and second else []
        changed = [key for key in keys if (first.get(key) or None) != (second.get(key) or None)]  # absent is off
        if changed:
            raise UniclError(
                f"{old.name} and {new.name} are different models: {', '.join(changed)} differ",
                "NEW has to be fine-tuned from OLD",
            )
    if not same_tokens(old.tokenizer, new.tokenizer):
        raise UniclError(f"{old.name} and {new.name} have different tokens", "NEW has to be fine-tuned from OLD")


def opened(both: Pair, data: Sequence[str] | None, split: str | None) -> list[tuple[Corpus, str]]:
    """The corpora to measure on, by default those of the recipe, and of each the split."""
    paths = list(dict.fromkeys(data or both.base.corpora))
    if not paths:
        raise UniclError(f"model {both.base.name} names no corpus to measure on", "give one with --data CORPUS")
    corpora = [open_corpus(Path(path)) for path in paths]
    usual = [next((name for name in CHOSEN_ON if name in each.splits), None) for each in corpora]
    return [(each, chosen_split(each, split or own)) for each, own in zip(corpora, usual, strict=True)]


def curve(
    both: Pair, alphas: Sequence[float], corpora: Sequence[tuple[Corpus, str]], *, batch: int, accelerator: Any
) -> list[dict[str, Any]]:
    """A point for each alpha: the figures of each data set, and their mean."""
    step = both.base.step
    step.to(accelerator.device)
    points: list[dict[str, Any]] = []
    for alpha in alphas:
        checkpoint.load_weights(step, both.at(alpha), f"alpha {alpha:g}")
        entries: list[dict[str, Any]] = []
        for corpus, split in corpora:
            with accelerator.autocast():
                figures = validate(both.base, corpus, split, batch=batch)
            if not figures:
                raise UniclError(
                    f"corpus {corpus.path}, split {split}: nothing to measure {both.base.name} on",
                    "it needs rows with labels, or with texts and a model that was trained on texts",
                )
            entries.append({"name": corpus.name, "split": split, **figures})
        points.append({"alpha": alpha, "data": entries, "mean": sum(map(merit, entries)) / len(entries)})
    return points


def merit(entry: Mapping[str, Any]) -> float:
    """Top 1, or the mean recall at 1 of both directions."""
    found = [value for name, value in entry.items() if name.endswith("_r1")]
    return float(entry["top1"]) if "top1" in entry else sum(found) / len(found)


def write(both: Pair, alpha: float, out: Path) -> None:
    """A run directory like the base's, or open_clip's layout where both are published; meta.json comes last."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = both.at(alpha)
    facts = {"schema": "unicl/model/1", "mixed": {"old": both.old.name, "new": both.new.name, "alpha": alpha}}
    try:
        if is_published(both.base):
            from unicl_cli.encoders.open_clip import published_tensors  # loaded already, unlike for a run

            checkpoint.load_weights(both.base.step, tensors, both.base.name)
            owned(both.base.step, "store")(out)
            model = published_tensors(both.base.step.model)
            checkpoint.write_tensors(out / hub.WEIGHTS[0], {name: x.cpu().contiguous() for name, x in model.items()})
        else:
            keep_files(find_run(both.base.name)[0], out)
            checkpoint.write_tensors(out / MODEL, {name: x.cpu().contiguous() for name, x in tensors.items()})
        write_atomic(out / META, json.dumps(facts, indent=1))
    except OSError as error:
        raise UniclError(f"-o {out}: cannot be written: {error.strerror}", "give another folder") from error


def keep_files(run: Path, out: Path) -> None:
    """What a run has beside its weights."""
    for name in KEPT:
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    if (run / TOWERS).is_dir():
        shutil.copytree(run / TOWERS, out / TOWERS, dirs_exist_ok=True)


def mix_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """The curve, in percent; the star marks the mixture with the highest mean."""
    if "curve" not in document:
        return
    table = Table(title=f"{document['old']} → {document['new']}")
    table.add_column("alpha", justify="right")
    for entry in document["curve"][0]["data"]:
        for name in shown(entry):
            table.add_column(f"{entry['name']} {entry['split']}\n{name}", justify="right")
    table.add_column("mean", justify="right")
    for point in document["curve"]:
        cells = [f"{100 * entry[name]:.1f}" for entry in point["data"] for name in shown(entry)]
        star = " *" if point["alpha"] == document["alpha"] else ""
        table.add_row(f"{point['alpha']:g}", *cells, f"{100 * point['mean']:.1f}{star}")
    yield table


def shown(entry: Mapping[str, Any]) -> list[str]:
    return [name for name in entry if name == "top1" or name.endswith("_r1")]
