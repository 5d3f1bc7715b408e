"""Contrast of two sets of features, as pure functions of features and keys."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL
from unicl_cli.core.dist import exchange, gather, largest_over_ranks, rank, share_of_mean, world_size
from unicl_cli.kernels.pairs import add_columns, pairs_of
from unicl_cli.kernels.targets import Target, build_levels, build_other_views, hide_named, hide_unknown, mask_target
from unicl_cli.kernels.tiles import in_kernel, tiled_sums

TERMS = ("image", "text")


def widen(x: Tensor) -> Tensor:
    """Convert half precision to float32, since half-precision logits are off by 1e-3 or more; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _kernel_input(x: Tensor, tile: int | None) -> Tensor:
    """Return ``x`` as ``tiled_sums`` takes it: the kernel multiplies half precision itself and sums in float32."""
    return x if in_kernel(x, tile) else widen(x)


def _scale_of(scale: Tensor | float, like: Tensor) -> Tensor:
    """Return the scale as a () tensor, at least float32, on the device of ``like``."""
    dtype = widen(like[:0]).dtype
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
    q, k = widen(q), widen(k)
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
            pairs, floors = pairs._replace(pulls=(levels.image, levels.text)), levels.entropy
            if target.classes is not None:
                everyone = everyone.with_prompts(len(target.classes))
                with_prompts = build_levels(target, everyone, s.dtype)
                floors = {**floors, "image": with_prompts.entropy["image"]}
                weights = s.new_ones(len(target.classes)) if target.weights is None else target.weights
                pairs = add_columns(pairs, weights == 0, with_prompts.image)
                k = torch.cat([k, _kernel_input(target.classes, tile).to(k.dtype)])
            unknown = hide_unknown(target, everyone, pairs.reads, len(k))
            pairs = pairs._replace(unknown=unknown, named=hide_named(target, everyone))
        rows, columns, *pulls = tiled_sums(u, k, s, pairs, tile)
        # the texts of this rank over all images; a text is one column, however many rows read it
        here = (columns - pairs.column_bias)[: world_size() * width].view(world_size(), width)
        columns = exchange(here).logsumexp(0)[mine]
        # equal keys are symmetric: the pulls of all images and of all texts have the same sum. A target has two pulls.
        # Either way images are not gathered
        sums = {"image": rows - pulls[0], "text": columns - pulls[-1]}
        means = {term: share_of_mean(x, valid, count) for term, x in sums.items()}
        loss = torch.stack([means[term] for term in terms]).mean()
        floor = torch.stack([floors[term] for term in terms]).mean(0)
        floor = _mean_of_first(floor, valid, count)
    logged = {"loss_per_image": means["image"], "loss_per_text": means["text"], "excess_loss": loss - floor}
    return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}


def supcon_loss(
    features: Tensor,
    keys: Tensor,
    ids: Tensor,
    temperature: float,
    *,
    tile: int | None = None,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute this rank's shares of the global means, each (): (n, D) unit rows of this rank, (n,) keys, (n,) ids.

    Every row is compared with all rows except itself (equal ``ids``); rows with an equal key are its positives; the
    mean is outside the log. A row without another positive gives 0 and is counted, as in the authors' code; their
    factor temperature / 0.07 is left out. With ``keys`` unique per image it is NT-Xent. SupCon (NeurIPS 2020) eq. 2;
    SimCLR (ICML 2020) eq. 1.

    With ``labels``, int64 (n, S), NO_LABEL where a row has fewer than S, the positives of row i are the other rows that
    share labels with it, each by the summed weight of these labels; ``weights`` (classes,): None for 1 each. A row
    without a label has its key as its label. ``excess_loss`` is then an estimate from the first rows of each rank.
    """
    features = _kernel_input(features, tile)
    with torch.autocast(features.device.type, enabled=False):
        scale = _scale_of(1 / temperature, features)
        columns = [keys[:, None], ids[:, None]]
        if labels is not None:
            labels = _label_by_key(labels, keys)
            columns.append(labels)
        all_keys, all_ids, *rest = gather(torch.cat(columns, 1)).T.contiguous()
        pairs = pairs_of(keys, all_keys, scale.dtype, exclude=(ids, all_ids))
        positive, floor = pairs.positives > 0, pairs.positives.clamp(min=1).to(scale.dtype).log()
        if labels is not None:
            found = build_other_views((labels, torch.stack(rest, 1)), (ids, all_ids), weights, scale.dtype)
            pairs, positive, floor = pairs._replace(pulls=(found.pull,)), found.positives, found.entropy
        rows, _, pull = tiled_sums(features, gather(features), scale, pairs, tile)
        valid, count = keys != NO_KEY, (all_keys != NO_KEY).sum()
        loss = share_of_mean((rows - pull).masked_fill(~positive, 0), valid, count)
        floor = _mean_of_first(floor, valid, count)
    return {"loss": loss, "excess_loss": (loss - floor).detach()}


def _label_by_key(labels: Tensor, keys: Tensor) -> Tensor:
    """Return the labels (n, S) of rows, with the key of a row that has none; none at all of a row with NO_KEY."""
    first = torch.where((labels != NO_LABEL).any(1), labels[:, 0], keys)
    return torch.cat([first[:, None], labels[:, 1:]], 1).masked_fill((keys == NO_KEY)[:, None], NO_LABEL)


def _mean_of_first(values: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Return this rank's share of the mean over the valid rows, of which ``values`` has all or only the first."""
    return share_of_mean(values, valid[: len(values)], count if len(values) == len(valid) else None)
