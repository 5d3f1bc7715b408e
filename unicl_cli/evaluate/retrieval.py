"""Retrieval between images and captions: pessimistic ranks in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.evaluate.statistics import Counts, share_interval

COLLAPSED = 1e-6
KEPT_SCORES = 1 << 24  # scores alive at once: 64 MiB in float32


class Gallery(NamedTuple):
    """The items that are searched: item i has the vector ``features[rows[i]]`` and the identity ``ids[i]``.

    Equal texts share one row, so that they tie exactly whatever a matrix product does to its last bits.
    """

    features: Tensor
    """(U, D), unit norm."""
    rows: Tensor
    """int64 (G,)."""
    ids: Tensor
    """int64 (G,), from 0 on."""


class Answers(NamedTuple):
    """The right answers by identity of the query: those of query q are ``ids[starts[q]:starts[q + 1]]``."""

    starts: Tensor
    """int64 (queries + 1,)."""
    ids: Tensor
    """int64: identities of items in the gallery."""

    def mask(self, queries: Tensor, items: int) -> Tensor:
        """Return bool (Q, items): for each query's identity, int64 (Q,), whether an identity is an answer."""
        counts = self.starts[queries + 1] - self.starts[queries]
        places = torch.arange(int(counts.sum()), device=queries.device)
        places += (self.starts[queries] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        found = torch.zeros(len(queries), items, dtype=torch.bool, device=queries.device)
        found[torch.arange(len(queries), device=queries.device).repeat_interleave(counts), self.ids[places]] = True
        return found


def answers_of(queries: Tensor, items: Tensor) -> Answers:
    """Return the answers from pairs of identities of a query and an item, int64 (P,) each, which may repeat."""
    pairs = torch.unique(torch.stack([queries, items]), dim=1)
    return Answers(F.pad(torch.bincount(pairs[0]).cumsum(0), (1, 0)), pairs[1])


def rank_queries(queries: Tensor, query_ids: Tensor, gallery: Gallery, answers: Answers) -> tuple[Tensor, float]:
    """Rank queries, (Q, D) unit norm, int64 (Q,): int64 (Q,) and the spread (largest - smallest) of all scores.

    The rank of a query is the number of items that are no answer and score at least as high as its best answer:
    0 = found first. Ties count against it, so a model that scores everything the same finds nothing.
    """
    chunk = max(1, KEPT_SCORES // max(len(gallery.ids), len(gallery.features)))
    items = int(gallery.ids.max()) + 1
    found: list[Tensor] = []
    lowest, highest = torch.inf, -torch.inf
    for start in range(0, len(queries), chunk):
        distinct = queries[start : start + chunk].float() @ gallery.features.float().T
        lowest, highest = min(lowest, float(distinct.min())), max(highest, float(distinct.max()))
        scores = distinct[:, gallery.rows]
        own = answers.mask(query_ids[start : start + chunk], items)[:, gallery.ids]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        found.append(((scores >= best) & ~own).sum(1))
    return torch.cat(found), highest - lowest


class Found(NamedTuple):
    """Ranks of a search in both directions, 0 = found first."""

    to_image: Tensor
    """int64 (T,): rank of the image of each caption."""
    to_text: Tensor
    """int64 (N,): rank of the best caption of each image."""
    image_of_text: Tensor
    """int64 (T,)."""
    image_ids: Tensor
    """int64 (N,), from 0 on: equal images have the same one."""
    collapsed: bool
    """True if all scores are equal."""


def search(
    image_features: Tensor,
    text_features: Tensor,
    text_rows: Tensor,
    image_of_text: Tensor,
    image_ids: Tensor | None = None,
) -> Found:
    """Search images (N, D) with distinct texts (U, D), and texts with images; each image has a caption.

    Caption t is ``text_features[text_rows[t]]`` of image ``image_of_text[t]``, both int64 (T,). Images with one of
    ``image_ids``, int64 (N,) from 0 on, are equal; None: all differ. An equal image and an equal text are hits, too: an
    image and a text belong together if any image equal to it has a caption equal to the text.
    """
    images = torch.arange(len(image_features), device=image_features.device)
    ids = images if image_ids is None else image_ids
    pairs = ids[image_of_text], text_rows
    image_gallery = Gallery(image_features, images, ids)
    text_gallery = Gallery(text_features, text_rows, text_rows)
    images_of_text, texts_of_image = answers_of(pairs[1], pairs[0]), answers_of(*pairs)
    to_image, spread = rank_queries(text_features[text_rows], text_rows, image_gallery, images_of_text)
    to_text, _ = rank_queries(image_features, ids, text_gallery, texts_of_image)
    collapsed = spread < COLLAPSED and len(images) > 1
    if collapsed:  # rounding alone would now rank: everything ties with everything
        to_image = _count_others(text_rows, image_gallery, images_of_text)
        to_text = _count_others(ids, text_gallery, texts_of_image)
    return Found(to_image, to_text, image_of_text, ids, collapsed)


def recalls(found: Found) -> dict[str, Any]:
    """Return ``{"images", "texts", "text_to_image": {"r1", "r1_interval", "r5", …}, "image_to_text": {…}}``.

    An image is a hit at k if any of its captions is among the first k. Intervals are at 95 %.
    """
    return {
        "images": len(found.to_text),
        "texts": len(found.to_image),
        "text_to_image": recall_at(found, text_hits),
        "image_to_text": recall_at(found, image_hits),
    }


def recall_at(found: Found, hits: Callable[[Found, int], tuple[Counts, Counts]]) -> dict[str, Any]:
    """Return the share of queries found among the first 1, 5, 10, each with its interval."""
    shares: dict[str, Any] = {}
    for k in (1, 5, 10):
        right, queries = hits(found, k)
        shares[f"r{k}"] = int(right.sum()) / int(queries.sum())
        shares[f"r{k}_interval"] = list(share_interval(right, queries))
    return shares


def text_hits(found: Found, k: int) -> tuple[Counts, Counts]:
    """Count for each distinct image, (G,), the captions that find it among the first ``k``, and all its captions."""
    owners = found.image_ids[found.image_of_text]
    return count_hits(owners, found.to_image < k)


def image_hits(found: Found, k: int) -> tuple[Counts, Counts]:
    """Count for each distinct image, (G,), its rows that find one of its captions among the first ``k``, and all."""
    return count_hits(found.image_ids, found.to_text < k)


def count_hits(owners: Tensor, hits: Tensor) -> tuple[Counts, Counts]:
    """Count the hits, bool (Q,), and the queries of each owner, int64 (Q,) from 0 on."""
    groups = int(owners.max()) + 1
    right, queries = torch.bincount(owners[hits], minlength=groups), torch.bincount(owners, minlength=groups)
    return right.cpu().numpy(), queries.cpu().numpy()


def _count_others(query_ids: Tensor, gallery: Gallery, answers: Answers) -> Tensor:
    """Count for each query the items that are no answer: its rank if everything ties."""
    zero = Gallery(gallery.features.new_zeros(1, 1), torch.zeros_like(gallery.rows), gallery.ids)
    return rank_queries(gallery.features.new_zeros(len(query_ids), 1), query_ids, zero, answers)[0]
