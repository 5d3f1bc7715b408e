"""Captions by beam search, which keeps the best few beginnings at each word; with one beam it is greedy."""

from typing import NamedTuple

import torch
from torch import Tensor

from unicl_captioner.decoder import Decoder


class Caption(NamedTuple):
    """A caption: the ids of its ``words``, and log p(caption | image), end token included.

    ``complete``: it ends; False: it was cut at the longest text that the decoder knows.
    """

    words: list[int]
    log_prob: float
    complete: bool


def write_captions(decoder: Decoder, image: Tensor, ends: tuple[int, int], beams: int) -> list[Caption]:
    """Write a caption for each image, (b, N, token_width); ``ends`` are the ids around a text.

    Each word is decoded once: the caches hold the keys and values of the image and of all words before.
    """
    start, end = ends
    b, caches = len(image), decoder.caches(keeps_words=True)
    texts = torch.full((b, 1, 1), start, device=image.device)  # (b, beams, t)
    scores = torch.zeros(b, 1, device=image.device)  # (b, beams); -inf: the beam has ended
    best = [Caption([], -torch.inf, complete=False)] * b
    for place in range(decoder.context_length - 1):
        here = torch.tensor([place], device=image.device)
        states = decoder(texts[:, :, -1].flatten()[:, None], image, places=here, caches=caches)
        steps = decoder.logits(states[:, 0]).log_softmax(1).view(b, texts.shape[1], -1)
        wide = (scores[:, :, None] + steps).flatten(1)  # (b, beams · V)
        scores, picks = wide.topk(min(beams, wide.shape[1]), dim=1)
        origins, words = picks // steps.shape[2], picks % steps.shape[2]
        rows = (torch.arange(b, device=image.device)[:, None] * texts.shape[1] + origins).flatten()
        for cache in caches:
            cache.take(rows)
        texts = torch.cat([texts.flatten(0, 1)[rows].view(b, -1, texts.shape[2]), words[:, :, None]], 2)
        ended = words == end
        keep_best(best, texts, scores, ended)
        scores = scores.masked_fill(ended, -torch.inf)
        if all(known.log_prob >= top for known, top in zip(best, scores.amax(1).tolist(), strict=True)):
            break
    cut = scores.argmax(1).tolist()
    return [
        known if known.complete else Caption(texts[row, at, 1:].tolist(), float(scores[row, at]), complete=False)
        for row, (known, at) in enumerate(zip(best, cut, strict=True))
    ]


def keep_best(best: list[Caption], texts: Tensor, scores: Tensor, ended: Tensor) -> None:
    """Keep the likeliest of the captions that have just ended, (b, beams), if it is likelier than the one known."""
    tops, places = scores.masked_fill(~ended, -torch.inf).max(1)
    for row, (top, place) in enumerate(zip(tops.tolist(), places.tolist(), strict=True)):
        if top > best[row].log_prob:
            best[row] = Caption(texts[row, place, 1:-1].tolist(), top, complete=True)
