"""UniCL's loss, with targets on two levels and of label sets."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch, Drawn, LabelSets, Model
from unicl_cli.core.batch_columns import HASH_KEYS, KNOWN, NAMED, OWN_TEXT, ROW_KEYS, SHOWN
from unicl_cli.core.image_cache import reads_no_images
from unicl_cli.core.label_sets import named_column, set_columns
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.contrast import TERMS, both_ways
from unicl_cli.losses.label_sets import class_weights, drop_weightless, labels_of
from unicl_cli.losses.texts import double_rows, encode_texts, text_keys

HIDING_TILE = 1024
"""Rows of a tile where captions are hidden from rows, if the recipe sets none."""


@reads_no_images
def target_columns(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, label_sets: LabelSets | None, hides_named: bool
) -> dict[str, Tensor]:
    """Return the column OWN_TEXT of a batch, from the hash of each row's caption, and those of its label sets.

    With ``hides_named`` also the column NAMED.
    """
    keys = [HASH_KEYS | row.text_hash if row.text_hash else NO_KEY for row in drawn]  # the hash of a prompt is 0
    sets = {} if label_sets is None else set_columns(drawn, tokens, text_index, label_sets=label_sets)
    return {OWN_TEXT: torch.tensor(keys), **sets, **(named_column(drawn) if hides_named else {})}


class SetTarget(nn.Module):
    """The part of a target that label sets add: weights of groups, prompts of one class, groups that are unknown."""

    weights: Tensor
    groups: Tensor

    def __init__(self, label_sets: LabelSets | None, weights: Mapping[str, float] | None) -> None:
        super().__init__()
        groups, silent = ((), ()) if label_sets is None else (label_sets.groups, label_sets.silent)
        values = class_weights(label_sets, weights or {})
        values[list(silent)] = 0  # of class columns alone, which then say nothing
        self.register_buffer("weights", values, persistent=False)
        self.register_buffer("groups", torch.tensor(groups, dtype=torch.int64), persistent=False)
        self.label_sets = label_sets
        self.drops = any(weight == 0 for weight in (weights or {}).values())

    def labels(self, batch: Batch) -> Tensor:
        """Return the labels of each row that count, (b, S)."""
        labels = labels_of(batch, self.label_sets)
        return drop_weightless(labels, self.weights) if self.drops else labels

    def hide_weightless(self, keys: Tensor, batch: Batch) -> Tensor:
        """Hide the rows whose prompt names a class of weight 0, so that their text has no positive."""
        if not self.drops:
            return keys
        shown = batch.extra[SHOWN]
        return keys.masked_fill((shown != NO_LABEL) & (self.weights[shown.clamp(min=0)] == 0), NO_KEY)

    def complete(self, target: Target, batch: Batch) -> Target:
        """Add the facts of label sets, and of captions that name classes, to the target of a batch."""
        target = target._replace(named=batch.extra.get(NAMED))
        if self.label_sets is None:
            return target
        found = target._replace(weights=self.weights, shown=batch.extra[SHOWN])
        count = len(self.label_sets.names)
        return found if count < 2 else found._replace(known=batch.extra[KNOWN], groups=self.groups, group_count=count)


class UniCL(nn.Module):
    """Image-text-label contrast: all pairs with equal keys are positives, both ways. UniCL (CVPR 2022) eq. 1.

    A row with a label that shows a caption of its own puts ``own_text`` of its target on the rows with that caption and
    the rest on its class: 0 is the paper's target, 1 ignores the label of such a row.

    A row that shows a caption and a prompt counts as two rows with the same image, which is encoded once.
    """

    score, activation = "text", "softmax"
    two_texts = True
    class_tokens: Tensor | None
    priors: Tensor | None

    def __init__(
        self,
        terms: Sequence[str] = TERMS,
        tile: int | None = None,
        *,
        fold: bool = True,
        own_text: float = 0.0,
        label_sets: LabelSets | None = None,
        weights: Mapping[str, float] | None = None,
        hides_named: bool = False,
    ) -> None:
        super().__init__()
        for term in terms:
            if term not in TERMS:
                raise UniclError(
                    f"loss.terms: unknown term '{term}'{did_you_mean(term, TERMS)}", "use image, text or both"
                )
        if not terms or len(set(terms)) < len(terms):
            raise UniclError(f"loss.terms: {list(terms)} is empty or repeats a term", "use image, text or both")
        if hides_named:  # pairs differ by row, so a text is a column per row; the kernel reads one word of bits per row
            fold, tile = False, tile or HIDING_TILE
        self.terms, self.tile, self.fold, self.own_text = tuple(terms), tile, fold, own_text
        self.sets, self.label_sets, self.hides_named = SetTarget(label_sets, weights), label_sets, hides_named
        self.register_buffer("class_tokens", None, persistent=False)
        self.register_buffer("priors", None, persistent=False)
        if own_text or label_sets is not None or hides_named:
            self._read_rows()

    def add_class_columns(self, tokens: Tensor) -> None:
        """Add the prompts of all classes, int64 (C, L), to the texts of each batch, for images alone.

        A row without labels has them as negatives; groups and names that hide prompts from rows hide these, too. Each
        rank encodes all of them. iCAR (arXiv:2204.10760).
        """
        if not len(tokens):
            raise UniclError("loss.class_columns: the mix has no classes", "remove it, or add a corpus with labels")
        self._check_image_term("class_columns")
        self.register_buffer("class_tokens", tokens, persistent=False)
        self._read_rows()

    def adjust_logits(self, counts: Sequence[int], power: float) -> None:
        """Add ``power`` times the log of a class's share of all labels to the logits of its prompts, for images alone.

        ``counts``: the training rows with each class. Evaluation adds nothing. Menon et al. (ICLR 2021), eq. 10.
        """
        if not sum(counts):
            raise UniclError("loss.logit_adjustment: no row of data.train has a label", "remove it, or add such rows")
        self._check_image_term("logit_adjustment")
        numbers = torch.tensor(counts).double().clamp(min=1)  # a class column may have no row
        self.register_buffer("priors", (power * (numbers / numbers.sum()).log()).float(), persistent=False)
        self._read_rows()

    def _check_image_term(self, option: str) -> None:
        if "image" not in self.terms:
            raise UniclError(
                f"loss.{option}: has no effect without the term image, which loss.terms lacks",
                f"add image to loss.terms, or remove loss.{option}",
            )

    def _read_rows(self) -> None:
        """Ask the loader for the columns of targets."""
        self.extra = partial(target_columns, label_sets=self.label_sets, hides_named=self.hides_named)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u = model.encode_image(batch.images).embed
        batch, keys = self.count_rows(batch)
        if len(keys) > len(u):
            u = torch.cat([u, u])
        scale = model.scale()
        v, index = encode_texts(model, batch, fold=self.fold)
        target = self.target_of(batch, scale.dtype)
        if target is not None and self.class_tokens is not None:
            target = target._replace(classes=model.encode_text(self.class_tokens).embed)
        if target is not None and self.priors is not None:
            u, v, target = self.add_priors(self.priors, u, v, scale, index, target)
        out = both_ways(u, v, keys, scale, terms=self.terms, tile=self.tile, index=index, target=target)
        return {**out, "logit_scale": scale.detach()}

    def count_rows(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return the batch with a row for each text, and the keys of its rows: NO_KEY for one that does not count."""
        batch = double_rows(batch)
        return batch, self.sets.hide_weightless(text_keys(batch.keys, batch), batch)

    def target_of(self, batch: Batch, dtype: torch.dtype) -> Target | None:
        """Return the target on two levels, or of label sets; None for a batch without the column OWN_TEXT."""
        if OWN_TEXT not in batch.extra:
            return None
        labels = self.sets.labels(batch)
        captions, labelled = batch.extra[OWN_TEXT], (labels != NO_LABEL).any(1)
        share = ((captions != NO_KEY).to(dtype) * self.own_text).masked_fill(~labelled, 1)
        # a row without a label has its own key, as in the paper, unless its one label weighs nothing
        texts = torch.where(labelled | (batch.keys < ROW_KEYS), captions, batch.keys)
        return self.sets.complete(Target(texts, share, labels), batch)

    def add_priors(
        self, priors: Tensor, u: Tensor, v: Tensor, scale: Tensor, index: Tensor | None, target: Target
    ) -> tuple[Tensor, Tensor, Target]:
        """Return images, texts and target with one coordinate more: it adds the prior of its class to a prompt's logit.

        It is a constant of each text, so softmaxes over images stay as they are.
        """
        shown = target.labels[:, 0].masked_fill(target.texts != NO_KEY, NO_LABEL)
        added = F.pad(priors, (0, 1)).to(v.dtype)[shown if target.shown is None else target.shown]  # last: no class
        if index is not None:  # rows that share a text show the same prompt
            added = v.new_zeros(len(v) + 1).index_put((index,), added)[:-1]  # last: rows without text
        if target.classes is not None:
            target = target._replace(classes=torch.cat([target.classes, priors[:, None].to(v.dtype)], 1))
        ones = torch.ones_like(u[:, :1]) / scale.to(u.dtype)  # the logit is scale * u . v
        return torch.cat([u, ones], 1), torch.cat([v, added[:, None]], 1), target
