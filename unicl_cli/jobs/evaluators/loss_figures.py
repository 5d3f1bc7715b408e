"""The evaluator `loss`: the loss's own metrics, on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from unicl_cli.build.media import check_media_of
from unicl_cli.contracts import NO_LABEL, Batch, ClassName, Drawn
from unicl_cli.core.dist import bare
from unicl_cli.core.host_copy import to_device
from unicl_cli.data.collate import Extra, collate
from unicl_cli.data.corpus import RowTable
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.scorer import shorten_names
from unicl_cli.jobs.evaluators.rows import limit_rows

if TYPE_CHECKING:
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, Need

SEED = 0
"""Seed of what a hook draws for a row."""


class LossFigures:
    """Shares of hits that ``loss.measure(model, batch)`` counts, over the rows of a split, of whatever kind.

    A batch is made as in training, without augmentation: the row's first text, its media through the hooks, random
    choices from (0, number of the row). Every rank computes all rows.
    """

    needs: Sequence[Need] = ("figures",)
    takes_sets = True

    def __call__(
        self, model: EvalModel, corpus: EvalCorpus, split: str, /, *, batch: int, limit: int | None = None
    ) -> Mapping[str, Any]:
        encoder = cast("Encoder", model)
        step: Any = bare(encoder.loaded.step)
        if not hasattr(step.loss, "measure"):
            raise UniclError(
                f"evaluator loss: the loss of {encoder.loaded.name} has no metrics of its own", "use zeroshot or probe"
            )
        own = number_classes(corpus.classes, encoder.loaded.classes)
        tables = [cast("RowTable", corpus.table(split, kind)) for kind in corpus.kinds(split)]
        parts = [(table, limit_rows(range(len(table)), limit)) for table in tables]
        warnings = check_media_of(step, parts)
        sums: dict[str, Tensor] = {}
        for table, rows in parts:
            for start in range(0, len(rows), batch):
                made = read_batch(encoder, table, rows[start : start + batch], own)
                for name, found in self.measure(encoder, made).items():
                    sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + found.cpu().double()
        shares = {name: (hits / total).item() for name, (hits, total) in sums.items() if total}
        unknown = [each.names[0] for each, number in zip(corpus.classes, own, strict=True) if number == NO_LABEL]
        if unknown:
            warnings.append(f"classes that the model lacks; their rows count as unlabelled: {shorten_names(unknown)}")
        count = sum(len(rows) for _, rows in parts)
        return {"n": count, **shares, **({"warnings": warnings} if warnings else {})} if shares else {}

    def measure(self, encoder: Encoder, batch: Batch) -> Mapping[str, Tensor]:
        """Return (hits, count) by name."""
        step: Any = bare(encoder.loaded.step)
        with torch.no_grad(), encoder.precision():
            return step.call("measure", to_device(batch, encoder.device))


def number_classes(corpus: Sequence[ClassName], model: Sequence[ClassName]) -> list[int]:
    """Return the model's number of each class of the corpus, by key, else by name whatever its case; or NO_LABEL."""
    keys = {each.key: number for number, each in enumerate(model)}
    names = {name.casefold(): number for number, each in enumerate(model) for name in each.names}
    return [keys.get(each.key, names.get(each.names[0].casefold(), NO_LABEL)) for each in corpus]


def read_batch(encoder: Encoder, table: RowTable, rows: Sequence[int], numbers: Sequence[int]) -> Batch:
    """Build the batch of some rows; ``numbers`` are the model's classes by the corpus's."""
    loaded = encoder.loaded
    step: Any = bare(loaded.step)
    hooks = Extra([part.extra for part in (step.model, step.loss) if hasattr(part, "extra")])
    drawn: list[Drawn] = []
    for row in rows:
        sample = table.read(row, media=bool(hooks))
        label = NO_LABEL if sample.label == NO_LABEL else numbers[sample.label]
        text = sample.texts[0] if sample.texts else None
        key = sample.text_hash[0] if sample.text_hash else 0
        image = loaded.transform(sample.image)
        drawn.append(Drawn(row, row, SEED, image, label, text, key, sample.media, key=sample.key))
    images = torch.stack([one.image for one in drawn])
    tokenizer: Any = loaded.tokenizer
    return collate(drawn, images, tokenizer=tokenizer, caption_targets="unique", extra=hooks or None)
