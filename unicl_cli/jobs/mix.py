"""`unicl mix`: weights interpolated between a model before and after fine-tuning, and the best point of the curve."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.table import Table
from torch import Tensor

from unicl_cli.build.init import same_tokens, source_settings
from unicl_cli.build.load import Loaded, copy_run_files, load_model, load_published
from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import barrier, rank
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.tables import make_table
from unicl_cli.formats import label_figure, percent
from unicl_cli.jobs.evaluate import measure_validation
from unicl_cli.recipe.load import load
from unicl_cli.runs.folder import META, MODEL_SCHEMA, RESOLVED, find_run
from unicl_cli.storage import hub
from unicl_cli.storage.files import write_atomic

if TYPE_CHECKING:
    from unicl_cli.data.corpus import Corpus

SELECTION_SPLITS = ("val", "test")
"""Splits to choose the best mixture on, in order of preference."""
FINE_TUNED = "choose a NEW that was fine-tuned from OLD at the same image size: unicl train RECIPE --init OLD"


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
    loaded, notes = load_pair(*names)
    both = check_pair(*loaded)
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
        notes += warned
    document["alpha"] = best
    if out is not None:
        if rank() == 0:
            notes += write_mixture(both, best, out)
        barrier()
        document["out"] = str(out)
    return document | {"warnings": notes} if notes else document


def load_pair(old: str, new: str) -> tuple[tuple[Loaded, Loaded], list[str]]:
    """Load OLD and NEW; weights of open_clip come at the image size of the other model, which a note says.

    A training at another image size began with interpolated positions. Interpolated in the same way, the weights
    before the training have the same shapes.
    """
    first, second = load_model(old), load_model(new)
    sizes = first.transform.size, second.transform.size
    resized = next((each for each in (first, second) if is_published(each)), None)
    if resized is None or sizes[0] == sizes[1] or not is_square(*sizes):
        return (first, second), []
    target = sizes[1] if resized is first else sizes[0]
    own = resized.transform.size
    again = load_published(resized.name, image_size=target[0])
    again.step.eval()
    note = f"{resized.name}: its positions are interpolated from {own[0]} to {target[0]} pixels, as in training"
    return ((again, second) if resized is first else (first, again)), [note]


def is_of_open_clip(loaded: Loaded) -> bool:
    """Return True for a model of open_clip, published or trained on here."""
    return is_published(loaded) or load(str(find_run(loaded.name)[0] / RESOLVED)).model.name == "open_clip"


def is_square(*sizes: tuple[int, int]) -> bool:
    return all(height == width for height, width in sizes)


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
        raise UniclError(f"{other} and {base} are different models: {', '.join(extra)}", FINE_TUNED)
    for name, x in theirs.items():
        if x.shape != mine[name].shape:
            shapes = f"{tuple(x.shape)} in {other}, {tuple(mine[name].shape)} in {base}"
            raise UniclError(f"{name}: is {shapes}, so the models differ", FINE_TUNED)


def check_settings(old: Loaded, new: Loaded) -> None:
    """Raise UniclError if settings that shapes do not show differ: heads, activations, pooling, tokens."""
    for first, second in zip(source_settings(old), source_settings(new), strict=True):
        keys = sorted(first.keys() | second.keys()) if first and second else []
        changed = [key for key in keys if (first.get(key) or None) != (second.get(key) or None)]  # absent is off
        if changed:
            raise UniclError(
                f"{old.name} and {new.name} are different models: {', '.join(changed)} differ",
                FINE_TUNED,
            )
    if not same_tokens(old.tokenizer, new.tokenizer):
        raise UniclError(f"{old.name} and {new.name} have different tokens", FINE_TUNED)


def open_splits(both: MixPair, data: Sequence[str] | None, split: str | None) -> list[tuple[Corpus, str]]:
    """Open the corpora to measure on, by default those of the recipe, each with its split."""
    paths = list(dict.fromkeys(data or both.base.corpora))
    if not paths:
        raise UniclError(f"model {both.base.name}: names no corpus to measure on", "give one with --data CORPUS")
    corpora = [open_corpus(path) for path in paths]
    usual = [next((name for name in SELECTION_SPLITS if name in each.splits), None) for each in corpora]
    return [(each, each.eval_split(split or own)) for each, own in zip(corpora, usual, strict=True)]


def measure_curve(
    both: MixPair, alphas: Sequence[float], corpora: Sequence[tuple[Corpus, str]], *, batch: int, accelerator: Any
) -> list[dict[str, Any]]:
    """Measure each alpha: the metrics of every data set, and their mean."""
    step = both.base.step
    step.to(accelerator.device)
    points: list[dict[str, Any]] = []
    for alpha in alphas:
        checkpoint.load_weights(step, both.interpolated(alpha), f"alpha {alpha:g}")
        entries: list[dict[str, Any]] = []
        for corpus, split in corpora:
            with accelerator.autocast():
                figures = measure_validation(both.base, corpus, split, batch=batch)
            reason = f" ({figures['reason']})" if "reason" in figures else ""
            figures = {name: value for name, value in figures.items() if isinstance(value, float)}
            if not figures:
                raise UniclError(
                    f"corpus {corpus.path}, split {split}: nothing to measure {both.base.name} on{reason}",
                    "choose a split with labels of several classes, or with texts and a model that was trained on them",
                )
            entries.append({"name": corpus.name, "split": split, **figures})
        points.append({"alpha": alpha, "data": entries, "mean": sum(map(entry_score, entries)) / len(entries)})
    return points


def entry_score(entry: Mapping[str, Any]) -> float:
    """Return top 1, else mean average precision, else the mean recall at 1 of both directions."""
    for name in ("top1", "map"):
        if name in entry:
            return float(entry[name])
    found = [value for name, value in entry.items() if name.endswith("_r1")]
    return sum(found) / len(found)


def write_mixture(both: MixPair, alpha: float, out: Path) -> list[str]:
    """Write a run directory like the base's, and open_clip's layout if the model is one of open_clip's; meta.json last.

    Both are in one folder: unicl reads it as a run, open_clip as ``local-dir:OUT``. Return notes for the user.
    """
    out.mkdir(parents=True, exist_ok=True)
    tensors = both.interpolated(alpha)
    facts: dict[str, Any] = {"schema": MODEL_SCHEMA, "finished": round(time.time(), 1)}
    facts["mixed"] = {"old": both.old.name, "new": both.new.name, "alpha": alpha}
    notes: list[str] = []
    try:
        if not is_published(both.base):
            copy_run_files(find_run(both.base.name)[0], out)
            write_weights(out / checkpoint_files.MODEL, tensors)
        if is_of_open_clip(both.base):
            checkpoint.load_weights(both.base.step, tensors, both.base.name)
            notes = write_open_clip(both.base, out)
        write_atomic(out / META, json.dumps(facts, indent=1))
    except checkpoint.WRITING_FAILS as error:
        reason = getattr(error, "strerror", None) or error
        raise UniclError(f"-o {out}: cannot be written: {reason}", "choose another folder") from error
    return notes


def write_open_clip(loaded: Loaded, out: Path) -> list[str]:
    """Write a model of open_clip in its layout: configuration, weights, and the tokenizer unless it is CLIP's.

    Nothing is written, and a note returned, if open_clip could not build the model.
    """
    from unicl_cli.encoders.carry import is_built_by_open_clip, published_tensors  # loaded already

    if not is_built_by_open_clip(loaded.step.model):
        height, width = loaded.transform.size
        return [
            f"{out}: is a run of unicl, and not in open_clip's layout: open_clip builds this timm backbone at its "
            f"published image size alone, not at {height} x {width}"
        ]
    cast("Any", loaded.step.model).text.store(out)
    config = json.loads((out / hub.CONFIG).read_text(encoding="utf-8"))
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(out.resolve())  # open_clip knows no relative path
        write_atomic(out / hub.CONFIG, json.dumps(config, indent=1))
    write_weights(out / hub.WEIGHTS[0], published_tensors(loaded.step.model))
    return []


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    checkpoint.write_tensors(path, {name: x.cpu().contiguous() for name, x in tensors.items()})


def mix_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the curve in percent: a table for each data set, and of several the mean; the star marks the best."""
    if "curve" not in document:
        return
    title, data = f"{document['old']} → {document['new']}", document["curve"][0]["data"]
    for number, entry in enumerate(data):
        names = figure_names(entry)
        of = f"{entry['name']} {entry['split']}"
        yield curve_table(document, f"{title} · {of}, %", number, names, mean=len(data) == 1)
    if len(data) > 1:
        yield curve_table(document, f"{title} · mean, %", 0, (), mean=True)


def curve_table(document: Mapping[str, Any], title: str, number: int, names: Sequence[str], *, mean: bool) -> Table:
    """Return a line per alpha: the metrics ``names`` of data set ``number``, and the mean over all data sets."""
    table = make_table(title, (), ("alpha", *map(label_figure, names), *(("mean", "best") if mean else ())))
    for point in document["curve"]:
        cells = [percent(point["data"][number][name]) for name in names]
        star = "*" if point["alpha"] == document["alpha"] else ""
        table.add_row(f"{point['alpha']:g}", *cells, *((percent(point["mean"]), star) if mean else ()))
    return table


def figure_names(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics that the table shows: top 1, mAP and the recalls at 1."""
    return [name for name in entry if name in ("top1", "map") or name.endswith("_r1")]
