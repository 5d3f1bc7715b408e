"""Bag-of-words prediction: the words of a text, in no order, from its image alone.

CLIP (ICML 2021), section 2.3 and Fig. 2, "bag of words prediction"; the softmax with targets 1/k is that of
Mahajan et al. (ECCV 2018), section 2.2; words as labels of an image go back to Joulin et al. (ECCV 2016).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import NO_TEXT, Batch, Model, Tokenizer, UniclError, gather, share_of_mean

SHOWN = 5
"""Maximum number of words that a warning names."""
PROMPTS = 1024
"""Prompts whose words are held at once, as one row of the vocabulary each."""


def words_of(tokens: Tensor, vocab_size: int, specials: Tensor) -> Tensor:
    """Return which words each text has: int64 (U, L) -> bool (U, V), false at special ids.

    The words stand between the start and the first end; what is behind is padding, whatever its id.
    """
    ends = (tokens[:, 1:] == specials[1]).cumsum(1) > 0
    inside = torch.where(ends, specials[0], tokens[:, 1:])
    found = torch.zeros(len(tokens), vocab_size, dtype=torch.bool, device=tokens.device).scatter_(1, inside, value=True)
    return found.index_fill_(1, specials, value=False)


def word_loss(logits: Tensor, words: Tensor, activation: str, pos_weight: float = 1.0) -> Tensor:
    """Return the loss of each text, (b,), from logits (b, W) and bool words (b, W), both without special words.

    softmax: -(1/k) Σ log p(w | x) over the k words of a text. sigmoid: binary cross-entropy, summed over all W words:
    its mean would make the gradient W times smaller. A text without words gives 0.
    """
    if activation == "sigmoid":
        weight = logits.new_full((), pos_weight)
        each = F.binary_cross_entropy_with_logits(logits, words.to(logits.dtype), reduction="none", pos_weight=weight)
        return each.sum(1).masked_fill(~words.any(1), 0)
    return -logits.log_softmax(1).masked_fill(~words, 0).sum(1) / words.sum(1).clamp(min=1)


class BagOfWords(nn.Module):
    """A linear classifier of words on the image tower's pooled output.

    ``counts`` int64 (V,): the texts of the training that had each word; it is saved with the weights.
    """

    score, many_prompts = "pair", True
    counts: Tensor
    specials: Tensor
    kept: Tensor

    def __init__(
        self,
        image_width: int,
        vocab_size: int,
        specials: Sequence[int],
        *,
        activation: str,
        pos_weight: float,
        length: str,
        prior: float,
    ) -> None:
        super().__init__()
        if pos_weight != 1 and activation == "softmax":
            raise UniclError(
                f"loss.pos_weight: {pos_weight:g} has no effect on a softmax", "set loss.activation=sigmoid"
            )
        if prior and activation == "sigmoid" and length == "sum":
            raise UniclError(
                "loss.prior: with a sigmoid and length sum, it would favour long names", "set loss.length=mean"
            )
        self.activation = "softmax"  # over the classes, whichever way words are predicted
        self.words, self.pos_weight, self.length, self.prior = activation, pos_weight, length, prior
        self.head = nn.Linear(image_width, vocab_size)
        self.register_buffer("counts", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("specials", torch.tensor(list(specials)), persistent=False)
        kept = [word for word in range(vocab_size) if word not in specials]
        self.register_buffer("kept", torch.tensor(kept), persistent=False)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        words = words_of(batch.tokens, len(self.counts), self.specials)[batch.text_index]  # (b, V)
        words = words & (batch.text_index != NO_TEXT)[:, None]
        if self.training:
            self.counts += gather(words.sum(0)[None]).sum(0)
        logits, words = self.logits(model, batch.images), words[:, self.kept]
        loss = share_of_mean(word_loss(logits, words, self.words, self.pos_weight), words.any(1))
        return {"loss": loss, "words": words.sum(1).to(loss.dtype).mean()}

    def logits(self, model: Model, images: Tensor) -> Tensor:
        """Return the logits of all words but the special ones, (b, W): they are left out before the softmax."""
        pooled = model.encode_image(images).pooled
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)[:, self.kept]

    def log_probabilities(self, model: Model, images: Tensor) -> Tensor:
        """Return log p(word | image), (b, W), less ``prior`` times the log of its share of all words in training."""
        logits = self.logits(model, images)
        found = logits.log_softmax(1) if self.words == "softmax" else F.logsigmoid(logits)
        seen = self.counts[self.kept].to(found.dtype) + 1  # a word that was never seen is as rare as one seen once
        return found - self.prior * (seen / seen.sum()).log()

    def pair_scores(self, model: Model, images: Tensor, tokens: Tensor) -> Tensor:
        """Score images with texts, (b, P): the mean or sum of the log-probabilities of the words of each text."""
        found = self.log_probabilities(model, images)
        return torch.cat([self.score_words(found, part) for part in tokens.split(PROMPTS)], 1)

    def score_words(self, found: Tensor, tokens: Tensor) -> Tensor:
        """Sum or average ``found`` (b, W) over the words of each text: (b, p)."""
        words = words_of(tokens, len(self.counts), self.specials)[:, self.kept]
        with torch.autocast(found.device.type, enabled=False):
            sums = found @ words.T.to(found.dtype)
            return sums / words.sum(1) if self.length == "mean" else sums

    def check_prompts(self, tokens: Tensor, tokenizer: Tokenizer) -> list[str]:
        """Return a warning about words that no text of the training had; UniclError for a prompt without words."""
        asked = torch.zeros(len(self.counts), dtype=torch.bool)
        for part in tokens.split(PROMPTS):
            words = words_of(part, len(asked), self.specials.cpu())
            if bool((~words.any(1)).any()):
                raise UniclError(
                    "a class has no word that the model knows", "give it another name, or another template"
                )
            asked |= words.any(0)
        unseen = (asked & (self.counts.cpu() == 0)).nonzero()[:, 0].tolist()
        if not unseen:
            return []
        decode = getattr(tokenizer, "decode", None)
        names = [f"token {word}" for word in unseen] if decode is None else decode([[word] for word in unseen])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        warning = f"{len(names)} words or pieces of words of the classes are in no training text"
        return [f"{warning}: {', '.join(names[:SHOWN])}{more}"]
