"""One stage of a training: all that is built or loaded before the loop."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from unicl_cli import __version__
from unicl_cli.build import (
    Data,
    build_data,
    build_step,
    build_tokenizer,
    check_learnable,
    doubts,
    store_towers,
    total_steps,
)
from unicl_cli.contracts import NO_LABEL, Batch, Tokenizer
from unicl_cli.core import checkpoint
from unicl_cli.core.dist import bare, rank, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.files import write_atomic
from unicl_cli.core.loop import Step, freeze_idle
from unicl_cli.data.batches import batches
from unicl_cli.data.collate import Extra
from unicl_cli.data.loader import Draws
from unicl_cli.data.tokenizers import TextTokenizer
from unicl_cli.errors import UniclError
from unicl_cli.recipe import Recipe, check_shares, dump

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "tokenizers", "numpy", "pyarrow", "pillow")


class Parts(NamedTuple):
    """All that a training consists of, on this rank."""

    recipe: Recipe
    data: Data
    step: nn.Module
    tokenizer: Tokenizer | None
    steps: int
    frozen: list[str]


def describe(batch: Batch, pad_id: int | None) -> dict[str, torch.Tensor]:
    """What a console line says of a batch: rows with a label, distinct texts a row, padding among the tokens."""
    labelled = {"label_share": (batch.labels != NO_LABEL).float().mean()}
    if pad_id is None:
        return labelled
    distinct = torch.tensor(len(batch.tokens) / len(batch.labels))
    return {**labelled, "unique_text": distinct, "padding": (batch.tokens == pad_id).float().mean()}


def versions() -> dict[str, str]:
    """Of everything that can change a number."""
    return {"unicl": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def platform_facts() -> dict[str, Any]:
    """For ``env.json``."""
    return {"versions": versions(), "platform": platform.platform(), "threads": torch.get_num_threads()}


def prepared(recipe: Recipe, accelerator: Any, run: Path) -> Parts:
    """Corpora, tokenizer, model and loss of a stage, with what no loss reaches frozen."""
    check_shares(recipe, world_size())
    data = build_data(recipe)
    check_learnable(recipe, data)
    for doubt in doubts(recipe, data) if rank() == 0 else ():
        sys.stderr.write(f"warning: {doubt}\n")
    fitted: list[TextTokenizer] = []

    def tokenizer() -> TextTokenizer:
        if not fitted:
            fitted.append(build_tokenizer(recipe, data))
        return fitted[0]

    micro = recipe.batch.micro
    local = recipe.batch.size // world_size()
    chunks = 1 if micro == "auto" else -(-local // micro)
    cut = checkpoint.newest(run / "checkpoints")  # its weights are going to be loaded
    if cut is not None:
        check_unchanged(data, cut)  # before anything of the run is written again
    step, own = build_step(recipe, tokenizer, data.classes, chunks, trained=run if cut else None)
    check_batchnorm(step, chunks)
    if rank() == 0:
        names = [{"key": c.key, "names": list(c.names)} for c in data.classes]
        length = own.context_length if own is not None else 0
        facts = {"classes": names, "templates": list(data.templates), "context_length": length}
        write_atomic(run / "classes.json", json.dumps(facts, indent=1, ensure_ascii=False))
        write_atomic(run / "resolved.yaml", dump(recipe))
        if isinstance(own, TextTokenizer):
            own.save(run / "tokenizer.json")
        if cut is None:
            store_towers(step, run)
    step.to(accelerator.device).train()
    steps = total_steps(recipe, data)
    first = next(stream(recipe, data, own, step, 0, 1, 0, pin=False))[1]
    frozen = freeze_idle(step, first, accelerator)
    return Parts(recipe, data, step, own, steps, frozen)


def check_unchanged(data: Data, folder: Path) -> None:
    """A run goes on only with the corpora it began with: tokenizer, classes and order came from them."""
    known = checkpoint.read_facts(folder)["corpora"].items()
    changed = [name for name, old in known if data.checksums.get(name, old) != old]
    if changed:
        raise UniclError(
            f"{', '.join(changed)}: the corpus has changed since {folder} was written",
            "put the old corpus back, or start a new run with --run-dir",
        )


def check_batchnorm(step: nn.Module, chunks: int) -> None:
    """Statistics of a part of a batch, or of one process's share, are not the batch's."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in step.modules()):  # pyright: ignore[reportPrivateUsage]
        return
    if chunks > 1:
        raise UniclError(
            "batch.micro would give BatchNorm other statistics than the whole batch",
            "set batch.micro=auto, or take a backbone without BatchNorm",
        )
    if world_size() > 1 and not torch.cuda.is_available() and rank() == 0:
        sys.stderr.write("warning: BatchNorm sees each process's share alone on the CPU; results depend on --devices\n")


def stream(
    recipe: Recipe,
    data: Data,
    tokenizer: Tokenizer | None,
    step: nn.Module,
    start: int,
    steps: int,
    workers: int,
    *,
    pin: bool,
) -> Any:
    """(step, Batch) of this rank from ``start`` on."""
    draws = Draws(data.order, start, steps, rank(), world_size())
    inner = cast("Step", bare(step))
    hooks: list[Any] = [part.extra for part in (inner.model, inner.loss) if hasattr(part, "extra")]
    return batches(
        data.mix,
        draws,
        cast("TextTokenizer | None", tokenizer),
        caption_targets=recipe.data.caption_targets,
        extra=Extra(hooks),
        distinct=not inner.drops_texts(),
        workers=workers,
        pin_memory=pin,
    )


def resume(wanted: str, run: Path, parts: Parts, step: nn.Module, optimizer: Any, average: Average | None) -> int:
    """Completed steps: 0, or those of the checkpoint that was loaded."""
    home = run / "checkpoints"
    own = checkpoint.newest(home)
    folder = own if wanted == "auto" else None if wanted == "never" else Path(wanted)
    if own is not None and (folder is None or folder.resolve().parent != home.resolve()):
        raise UniclError(f"{run}: holds checkpoints", "give another --run-dir, or --resume auto to continue them")
    if folder is None:
        return 0
    if not checkpoint.is_whole(folder):
        raise UniclError(
            f"--resume {wanted}: is no whole checkpoint", "give a directory like RUN/checkpoints/step-00000100"
        )
    facts = checkpoint.read_facts(folder)
    check_unchanged(parts.data, folder)
    checkpoint.load_weights(bare(step), checkpoint.read_tensors(folder / checkpoint.MODEL), str(folder))
    checkpoint.load_optimizer(step, optimizer, folder / checkpoint.OPTIM)
    if average is not None:
        average.load(checkpoint.read_tensors(folder / checkpoint.EMA))
    torch.set_num_threads(facts["threads"])  # another number sums in another order
    if rank() == 0:
        sys.stderr.write(f"{run}: continues after step {facts['step']} of {parts.steps}\n")
    return int(facts["step"])
