"""The losses: pure functions of features and keys, and the modules that call them."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, NO_TEXT, Batch, Drawn, LabelSets, Model
from unicl_cli.core.batch_columns import HASH_KEYS, KNOWN, LABEL_SET, OWN_TEXT, SHOWN
from unicl_cli.core.dist import exchange, gather, largest_over_ranks, rank, share_of_mean, world_size
from unicl_cli.core.label_sets import set_columns
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.kernels.pairs import pairs_of
from unicl_cli.kernels.targets import Target, build_levels, hide_unknown, mask_target
from unicl_cli.kernels.tiles import in_kernel, tiled_sums

TERMS = ("image", "text")


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, since half-precision logits are off by 1e-3 or more; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _kernel_input(x: Tensor, tile: int | None) -> Tensor:
    """Return ``x`` as ``tiled_sums`` takes it: the kernel multiplies half precision itself and sums in float32."""
    return x if in_kernel(x, tile) else _at_least_float32(x)


def _scale_of(scale: Tensor | float, like: Tensor) -> Tensor:
    """Return the scale as a () tensor, at least float32, on the device of ``like``."""
    dtype = _at_least_float32(like[:0]).dtype
    if not isinstance(scale, Tensor):
        return torch.full((), scale, dtype=dtype, device=like.device)  # filled there: a copy would wait for a GPU
    return scale.to(like.device, dtype).reshape(())


def contrast(
    q: Tensor,
    k: Tensor,
    q_keys: Tensor,
    k_keys: Tensor,
    scale: Tensor | float,
    exclude: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute minus the mean log-probability of each row's positives: (b, D), (B, D), (b,), (B,), () -> (b,), in nats.

    Columns with NO_KEY and pairs with equal ``exclude`` ids are in neither sum; a row without positives gives 0.
    Keeps b x B logits in memory: the oracle of ``contrast_tiled``. UniCL (CVPR 2022) eq. 2, 3.
    """
    q, k = _at_least_float32(q), _at_least_float32(k)
    with torch.autocast(q.device.type, enabled=False):
        logits = _scale_of(scale, q) * q @ k.T  # (b, B)
        hidden = (k_keys == NO_KEY).expand_as(logits)
        if exclude is not None:
            hidden = hidden | (exclude[0][:, None] == exclude[1])
        positive = (q_keys[:, None] == k_keys) & ~hidden
        count = positive.sum(1)
        pull = logits.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
        return (logits.masked_fill(hidden, -torch.inf).logsumexp(1) - pull).masked_fill(count == 0, 0)


def contrast_tiled(
    q: Tensor,
    k: Tensor,
    q_keys: Tensor,
    k_keys: Tensor,
    scale: Tensor | float,
    exclude: tuple[Tensor, Tensor] | None = None,
    *,
    tile: int | None = None,
) -> Tensor:
    """Compute ``contrast`` with the same values and gradients, ``tile`` rows at a time, never b x B at once."""
    q, k = _kernel_input(q, tile), _kernel_input(k, tile)
    with torch.autocast(q.device.type, enabled=False):
        s = _scale_of(scale, q)
        pairs = pairs_of(q_keys, k_keys, s.dtype, exclude=exclude)
        rows, _, pull = tiled_sums(q, k, s, pairs, tile)
        return (rows - pull).masked_fill(pairs.positives == 0, 0)


def both_ways(
    u: Tensor,
    v: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    *,
    terms: Sequence[str] = TERMS,
    tile: int | None = None,
    index: Tensor | None = None,
    target: Target | None = None,
) -> dict[str, Tensor]:
    """Compute this rank's shares of the global means, each (): (b, D) images, (b, D) texts, (b,) keys, () scale.

    ``loss`` is the mean of the ``terms``; ``loss_per_image`` is the softmax over texts, ``loss_per_text`` over images.
    ``excess_loss`` is ``loss`` minus the lowest value that these keys allow. Rows with NO_KEY are hidden on both sides
    and not counted. One product serves both directions; texts and keys are gathered, images are not.

    With ``index``, int64 (b,), ``v`` is (U, D), the distinct texts, and the text of row i is ``v[index[i]]``: the same
    numbers as with ``v[index]``, from b x U logits. U may differ by rank; the index of a hidden row may be NO_TEXT.

    With ``target``, the positives of a row and their shares are those of `Target`, not the rows with its key. Where
    rows may have several labels, ``excess_loss`` is an estimate from the first 32 rows of each rank.
    """
    u, v = _kernel_input(u, tile), _kernel_input(v, tile)
    with torch.autocast(u.device.type, enabled=False):
        s = _scale_of(scale, u)
        width = len(v) if index is None else largest_over_ranks(len(v))  # every rank gathers the same number of rows
        k = gather(F.pad(v, (0, 0, 0, width - len(v))) if width > len(v) else v)
        mine = torch.arange(len(v), device=v.device) if index is None else index.clamp(min=0)
        all_keys, reads = gather(torch.stack([keys, mine + rank() * width], 1)).T.contiguous()
        pairs = pairs_of(keys, all_keys, s.dtype, column_sums=True, shared=(reads, len(k)))
        valid, count = keys != NO_KEY, (all_keys != NO_KEY).sum()
        lowest = pairs.positives.clamp(min=1).to(s.dtype).log()
        floors = {"image": lowest, "text": lowest}
        if target is not None:
            target = mask_target(target, valid)
            everyone = target.map_rows(gather)
            levels = build_levels(target, everyone, s.dtype)
            unknown = hide_unknown(target, everyone, reads, len(k))
            pairs, floors = pairs._replace(pulls=(levels.image, levels.text), unknown=unknown), levels.entropy
        rows, columns, *pulls = tiled_sums(u, k, s, pairs, tile)
        # the texts of this rank over all images; a text is one column, however many rows read it
        here = (columns - pairs.column_bias).view(world_size(), width)
        columns = exchange(here).logsumexp(0)[mine]
        # equal keys are symmetric: the pulls of all images and of all texts have the same sum. A target has two pulls.
        # Either way images are not gathered
        sums = {"image": rows - pulls[0], "text": columns - pulls[-1]}
        means = {term: share_of_mean(x, valid, count) for term, x in sums.items()}
        loss = torch.stack([means[term] for term in terms]).mean()
        floor = torch.stack([floors[term] for term in terms]).mean(0)
        floor = share_of_mean(floor, valid[: len(floor)], count if len(floor) == len(valid) else None)
    logged = {"loss_per_image": means["image"], "loss_per_text": means["text"], "excess_loss": loss - floor}
    return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}


def supcon_loss(
    features: Tensor, keys: Tensor, ids: Tensor, temperature: float, *, tile: int | None = None
) -> dict[str, Tensor]:
    """Compute this rank's shares of the global means, each (): (n, D) unit rows of this rank, (n,) keys, (n,) ids.

    Every row is compared with all rows except itself (equal ``ids``); rows with an equal key are its positives; the
    mean stands outside the log. A row without another positive gives 0 and is counted, as in the authors' code; their
    factor temperature / 0.07 is left out. With ``keys`` unique per image it is NT-Xent.
    SupCon (NeurIPS 2020) eq. 2; SimCLR (ICML 2020) eq. 1.
    """
    features = _kernel_input(features, tile)
    with torch.autocast(features.device.type, enabled=False):
        scale = _scale_of(1 / temperature, features)
        all_keys, all_ids = gather(torch.stack([keys, ids], 1)).T.contiguous()
        pairs = pairs_of(keys, all_keys, scale.dtype, exclude=(ids, all_ids))
        rows, _, pull = tiled_sums(features, gather(features), scale, pairs, tile)
        valid, count = keys != NO_KEY, (all_keys != NO_KEY).sum()
        loss = share_of_mean((rows - pull).masked_fill(pairs.positives == 0, 0), valid, count)
        floor = share_of_mean(pairs.positives.clamp(min=1).to(rows.dtype).log(), valid, count)
    return {"loss": loss, "excess_loss": (loss - floor).detach()}


def _encode_texts(model: Model, batch: Batch, *, fold: bool) -> tuple[Tensor, Tensor | None]:
    """Encode the distinct texts: return (U, D) and the index of each row's text, or (b, D), one per row, and None."""
    v = model.encode_text(batch.tokens).embed
    if fold:
        return v, batch.text_index
    return v[batch.text_index], None  # a row without text reads the last one and is hidden


def _text_keys(keys: Tensor, batch: Batch) -> Tensor:
    """Hide the rows without text."""
    return keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY)


def _class_loss(head: nn.Linear, pooled: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute this rank's share of the mean cross-entropy of rows with a label; without any, 0 with a gradient."""
    valid = labels != NO_LABEL
    with torch.autocast(pooled.device.type, enabled=False):
        targets = labels.masked_fill(~valid, 0)
        values = F.cross_entropy(head(_at_least_float32(pooled)), targets, reduction="none", label_smoothing=smoothing)
        return share_of_mean(values, valid)


def target_columns(
    drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, label_sets: LabelSets | None
) -> dict[str, Tensor]:
    """Return the column OWN_TEXT of a batch, from the hash of each row's caption, and those of its label sets."""
    keys = [HASH_KEYS | row.text_hash if row.text_hash else NO_KEY for row in drawn]  # the hash of a prompt is 0
    sets = {} if label_sets is None else set_columns(drawn, tokens, text_index, label_sets=label_sets)
    return {OWN_TEXT: torch.tensor(keys), **sets}


class SetTarget(nn.Module):
    """The part of a target that label sets add: weights of groups, prompts of one class, groups that are unknown."""

    weights: Tensor
    groups: Tensor

    def __init__(self, label_sets: LabelSets | None, weights: Mapping[str, float] | None) -> None:
        super().__init__()
        weights = weights or {}
        names = () if label_sets is None else label_sets.names
        for name in weights:
            if name not in names:
                have = f"use one of {', '.join(names)}" if any(names) else "remove it: the classes have no groups"
                raise UniclError(f"loss.weights: unknown group '{name}'{did_you_mean(name, names)}", have)
        groups = () if label_sets is None else label_sets.groups
        values = torch.tensor([weights.get(names[group], 1.0) for group in groups])
        self.register_buffer("weights", values, persistent=False)
        self.register_buffer("groups", torch.tensor(groups, dtype=torch.int64), persistent=False)
        self.is_weighted, self.has_groups = bool(weights), len(names) > 1

    def complete(self, target: Target, batch: Batch) -> Target:
        """Add the facts of label sets to the target of a batch that has their columns."""
        if LABEL_SET not in batch.extra:
            return target
        shown = batch.extra[SHOWN]
        found = target._replace(weights=self.weights if self.is_weighted else None, shown=shown)
        return found._replace(known=batch.extra[KNOWN], groups=self.groups) if self.has_groups else found


class UniCL(nn.Module):
    """Image-text-label contrast: all pairs with equal keys are positives, both ways. UniCL (CVPR 2022) eq. 1.

    A row with a label that shows a caption of its own puts ``own_text`` of its target on the rows with that caption and
    the rest on its class: 0 is the paper's target, 1 ignores the label of such a row.
    """

    score, activation = "text", "softmax"

    def __init__(
        self,
        terms: Sequence[str] = TERMS,
        tile: int | None = None,
        *,
        fold: bool = True,
        own_text: float = 0.0,
        label_sets: LabelSets | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        for term in terms:
            if term not in TERMS:
                raise UniclError(
                    f"loss.terms: unknown term '{term}'{did_you_mean(term, TERMS)}", "use image, text or both"
                )
        if not terms or len(set(terms)) < len(terms):
            raise UniclError(f"loss.terms: {list(terms)} is empty or repeats a term", "use image, text or both")
        self.terms, self.tile, self.fold, self.own_text = tuple(terms), tile, fold, own_text
        self.sets = SetTarget(label_sets, weights)
        if own_text or label_sets is not None:
            self.extra = partial(target_columns, label_sets=label_sets)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u, scale = model.encode_image(batch.images).embed, model.scale()
        v, index = _encode_texts(model, batch, fold=self.fold)
        keys, target = _text_keys(batch.keys, batch), self._target(batch, scale.dtype)
        out = both_ways(u, v, keys, scale, terms=self.terms, tile=self.tile, index=index, target=target)
        return {**out, "logit_scale": scale.detach()}

    def _target(self, batch: Batch, dtype: torch.dtype) -> Target | None:
        """Return the target on two levels; None for a batch without the column OWN_TEXT, as a dry run makes it."""
        if OWN_TEXT not in batch.extra:
            return None
        labels = batch.extra.get(LABEL_SET, batch.labels[:, None])
        captions, labelled = batch.extra[OWN_TEXT], (labels != NO_LABEL).any(1)
        share = ((captions != NO_KEY).to(dtype) * self.own_text).masked_fill(~labelled, 1)
        texts = torch.where(labelled, captions, batch.keys)  # a row without a label has its own key, as in the paper
        return self.sets.complete(Target(texts, share, labels), batch)


class Clip(nn.Module):
    """Identity targets, labels ignored: the only positive of a row is its own text. CLIP (ICML 2021)."""

    score, activation = "text", "softmax"

    def __init__(self, tile: int | None = None, *, fold: bool = True) -> None:
        super().__init__()
        self.tile, self.fold = tile, fold

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u, scale = model.encode_image(batch.images).embed, model.scale()
        v, index = _encode_texts(model, batch, fold=self.fold)
        out = both_ways(u, v, _text_keys(batch.draws, batch), scale, tile=self.tile, index=index)
        return {**out, "logit_scale": scale.detach()}


class SupCon(nn.Module):
    """Contrast of image views behind its own MLP; positives have equal keys: the label, else the image itself."""

    score, activation = "none", "softmax"

    def __init__(self, image_width: int, temperature: float = 0.1, dim: int = 128, tile: int | None = None) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(image_width, image_width), nn.ReLU(), nn.Linear(image_width, dim))
        self.temperature, self.tile = temperature, tile

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if batch.images.dim() != 5:
            raise UniclError("data.views: loss supcon needs several views of each image, got 1", "set data.views=2")
        views = batch.images.shape[1]
        z = self.head(model.encode_image(batch.images.flatten(0, 1)).pooled)
        ids = (batch.draws[:, None] * views + torch.arange(views, device=z.device)).flatten()
        keys = batch.keys.repeat_interleave(views)
        return supcon_loss(F.normalize(_at_least_float32(z), dim=-1), keys, ids, self.temperature, tile=self.tile)


class CrossEntropy(nn.Module):
    """A linear classifier on the image tower's pooled output; rows without a label are not counted."""

    score, activation = "head", "softmax"

    def __init__(self, image_width: int, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(image_width, num_classes)
        self.label_smoothing = label_smoothing

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        pooled = model.encode_image(batch.images).pooled
        return {"loss": _class_loss(self.head, pooled, batch.labels, self.label_smoothing)}


class MultiTask(nn.Module):
    """CLIP on rows without a label plus ``weight`` times cross-entropy on rows with one. UniCL, Table 6."""

    score, activation = "text", "softmax"

    def __init__(
        self, image_width: int, num_classes: int, weight: float = 1.0, tile: int | None = None, *, fold: bool = True
    ) -> None:
        super().__init__()
        self.head = nn.Linear(image_width, num_classes)
        self.weight, self.tile, self.fold = weight, tile, fold

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        image, scale = model.encode_image(batch.images), model.scale()
        v, index = _encode_texts(model, batch, fold=self.fold)
        keys = _text_keys(batch.draws, batch).masked_fill(batch.labels != NO_LABEL, NO_KEY)
        clip = both_ways(image.embed, v, keys, scale, tile=self.tile, index=index)
        ce = _class_loss(self.head, image.pooled, batch.labels)
        loss = clip["loss"] + self.weight * ce
        logged = {"loss_clip": clip["loss"], "loss_ce": ce, "excess_loss": loss, "logit_scale": scale}  # the floor is 0
        return {**clip, **{name: value.detach() for name, value in logged.items()}, "loss": loss}
