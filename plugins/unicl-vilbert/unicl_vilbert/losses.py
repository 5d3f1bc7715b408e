"""The objectives of ViLBERT: masked words, masked regions and alignment; referring expressions; questions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_bert.masking import Task, mask_words, sum_tasks, uniform, word_task
from unicl_regions.boxes import Regions, check_targets, pairwise_iou, read_targets

from unicl_cli.api import NO_LABEL, NO_TEXT, Batch, UniclError, at_least_float32, share_of_mean
from unicl_vilbert.masking import CAPTION, mask_regions, row_seeds
from unicl_vilbert.model import Vilbert
from unicl_vilbert.streams import States

AMONG = 32
"""Images of a batch among which a text finds its own: joint scores cost a pass for each pair."""
HIT = 0.5
"""The IoU from which a region is the one that an expression refers to."""


def region_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return KL(target ‖ softmax(logits)) of each region, (…, K) -> (…) (section 3.2)."""
    logits = at_least_float32(logits)
    return F.kl_div(logits.log_softmax(-1), target.to(logits.dtype), reduction="none").sum(-1)


def check_model(model: object) -> None:
    """Raise UniclError unless a loss of this file is trained on a vilbert model."""
    if not isinstance(model, Vilbert):
        raise UniclError("loss: the losses of vilbert need its two streams", "set model.name=vilbert")


def caption_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return each row's tokens, int64 (b, L), and bool (b,): it has a text."""
    return batch.tokens[batch.text_index], batch.text_index != NO_TEXT


def score_pairs(model: Vilbert, images: Tensor, tokens: Tensor, extra: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the alignment logit of each image (b) with each text (C, L): (b, C), one image at a time."""
    words, there = model.text_tokens(tokens), model.text.there(tokens)
    found = model.find(images, extra or {})
    rows: list[Tensor] = []
    for row in range(len(images)):
        own = Regions(*(x[row : row + 1].expand(len(words), -1, *x.shape[2:]) for x in found[:3]))
        two = model.align(model.pooled(model(words, there, own)))
        rows.append(two[:, 1] - two[:, 0])
    return torch.stack(rows)


class Joint(nn.Module, ABC):
    """The common part of all objectives: the log odds of alignment as score of a pair, and metrics on held-out rows."""

    score, activation = "pair", "sigmoid"

    def pair_scores(self, model: Vilbert, images: Tensor, tokens: Tensor) -> Tensor:
        """Score uint8 (b, 3, H, W) and texts (C, L): (b, C) log odds of alignment."""
        return score_pairs(model, images, tokens)

    @abstractmethod
    def tasks(self, model: Vilbert, batch: Batch) -> dict[str, Task]:
        """Return the tasks of a share by name."""

    def measure(self, model: Vilbert, batch: Batch) -> dict[str, Tensor]:
        """Return (hits, count) of each task, (2,)."""
        tasks = self.tasks(model, batch)
        return {name: torch.stack([(p.hits & p.valid).sum(), p.valid.sum()]).float() for name, p in tasks.items()}


class VilbertLoss(Joint):
    """Masked words + masked regions + alignment, each with its weight (section 3.2).

    A wrong caption is that of the neighbour (slot XOR 1), and only if the rows' keys and texts differ. Words and
    regions are masked in all pairs, or a mask would reveal that a pair is aligned. They are predicted in aligned pairs
    only, unless ``misaligned``.
    """

    def __init__(self, share: float, wrong: float, weights: Mapping[str, float], *, misaligned: bool) -> None:
        super().__init__()
        self.share, self.wrong, self.weights, self.misaligned = share, wrong, weights, misaligned
        self.extra = row_seeds

    def forward(self, model: Vilbert, batch: Batch) -> dict[str, Tensor]:
        return sum_tasks(self.tasks(model, batch), self.weights)

    def tasks(self, model: Vilbert, batch: Batch) -> dict[str, Task]:
        check_model(model)
        seeds, (tokens, has) = batch.extra["seeds"], caption_tokens(batch)
        wrong = self.choose_wrong(batch, tokens, has, seeds)
        tokens = torch.where(wrong[:, None], tokens[neighbours(tokens)], tokens)
        there = model.text.there(tokens)
        asked = (has if self.misaligned else has & ~wrong)[:, None]
        words = there & (torch.arange(tokens.shape[1], device=tokens.device) > 0) & (tokens != model.text.special.end)
        sizes = (model.text.special.mask, model.text.size.vocab_size)
        hidden = mask_words(tokens, words & has[:, None], seeds, self.share, sizes)
        found = model.find(batch.images, batch.extra)
        chosen, zeroed = mask_regions(found.there & has[:, None], seeds, self.share)
        encoded = model.text.encode(hidden.tokens, there, layers=model.before)
        states = model(encoded, there, found, (chosen, zeroed))
        return {
            "words": word_task(model.text.predict(states.words), tokens, hidden.chosen & asked),
            "regions": region_task(
                model.region_logits(states),
                cast("Any", model.regions).distributions(batch.images, found),
                chosen & asked,
            ),
            "align": align_task(model.align(model.pooled(states)), ~wrong, has),
        }

    def measure(self, model: Vilbert, batch: Batch) -> dict[str, Tensor]:
        """Return (hits, count) of the tasks, and of finding the image of each text among 32 by pair scores.

        A batch of fewer rows has no part in the latter; of a larger one, the first 32 rows have.
        """
        figures = super().measure(model, batch)
        if len(batch.keys) < AMONG:
            return figures
        few = Batch(*(x[:AMONG] for x in batch[:-1]), extra={name: x[:AMONG] for name, x in batch.extra.items()})
        tokens, has = caption_tokens(few)
        scores = score_pairs(model, few.images, tokens, few.extra)  # (images, texts)
        ahead = ((scores >= scores.diagonal()) & (few.keys[:, None] != few.keys)).any(0)
        found = torch.stack([(has & ~ahead).sum(), has.sum()]).float()
        return {**figures, f"text_to_image_r1_of_{AMONG}": found}

    def choose_wrong(self, batch: Batch, tokens: Tensor, has: Tensor, seeds: Tensor) -> Tensor:
        """Return bool (b,): the row gets its neighbour's caption."""
        other = neighbours(tokens, alone=not self.training)
        differ = (batch.keys != batch.keys[other]) & (tokens != tokens[other]).any(1)
        return (uniform(seeds, 1, CAPTION)[:, 0] < self.wrong) & has & has[other] & differ


def neighbours(rows: Tensor, *, alone: bool = False) -> Tensor:
    """Return the number of each row's neighbour, slot XOR 1.

    UniclError for an odd number of rows, unless the last may stand ``alone``: it is its own neighbour then.
    """
    if len(rows) % 2 and not alone:
        raise UniclError(
            f"batch.size: vilbert pairs neighbours, but a process has {len(rows)} rows", "make it even per process"
        )
    return (torch.arange(len(rows), device=rows.device) ^ 1).clamp(max=len(rows) - 1)


def region_task(logits: Tensor, target: Tensor, chosen: Tensor) -> Task:
    """Return the divergence of the masked regions, (b, R)."""
    return Task(region_divergence(logits, target), logits.argmax(-1) == target.argmax(-1), chosen)


def align_task(logits: Tensor, aligned: Tensor, has: Tensor) -> Task:
    """Return cross-entropy of the alignment, (b,)."""
    values = F.cross_entropy(at_least_float32(logits), aligned.long(), reduction="none")
    return Task(values, (logits[:, 1] > logits[:, 0]) == aligned, has)


class ReferLoss(Joint):
    """The region that an expression refers to (ViLBERT, section 3.3): a logit of each region's last state.

    ``target`` bce: every region with IoU ≥ 0.5 is right, mean over real regions; ce: a softmax over regions, its target
    is the best one. A row without such a region has no part in ce; `recall_of_regions` is the share of rows with one.
    """

    score = "none"  # the alignment is not trained here

    def __init__(self, image_width: int, target: str) -> None:
        super().__init__()
        self.target, self.choose = target, nn.Linear(image_width, 1)
        self.extra, self.check_rows = read_targets, check_targets

    def forward(self, model: Vilbert, batch: Batch) -> dict[str, Tensor]:
        logits, iou, there, has = self.look(model, batch)
        best = iou.amax(1) >= HIT
        if self.target == "ce":
            hidden = logits.masked_fill(~there, -torch.inf)
            values = F.cross_entropy(hidden.masked_fill(~has[:, None], 0), iou.argmax(1), reduction="none")
            loss = share_of_mean(values, has & best)
        else:
            values = F.binary_cross_entropy_with_logits(logits, (iou >= HIT).to(logits.dtype), reduction="none")
            loss = share_of_mean(values.flatten(), (there & has[:, None]).flatten())
        tasks = self.figures(logits, iou, there, has)
        shown = {name: share_of_mean(p.hits.float(), p.valid).detach() for name, p in tasks.items()}
        return {"loss": loss, **shown}

    def look(self, model: Vilbert, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits (b, R), IoU with the target (b, R), bool (b, R) of real regions, bool (b,): has a target."""
        check_model(model)
        tokens, has = caption_tokens(batch)
        found = model.find(batch.images, batch.extra)
        states = model(model.text_tokens(tokens), model.text.there(tokens), found)
        iou = pairwise_iou(found.boxes, batch.extra["target_box"][:, None])[..., 0].masked_fill(~found.there, 0)
        return (
            at_least_float32(self.choose(states.regions[:, 1:]))[..., 0],
            iou,
            found.there,
            has & batch.extra["has_target"],
        )

    def figures(self, logits: Tensor, iou: Tensor, there: Tensor, has: Tensor) -> dict[str, Task]:
        """Return acc@0.5 and the recall of regions."""
        choice = logits.masked_fill(~there, -torch.inf).argmax(1)
        right = iou.gather(1, choice[:, None])[:, 0] >= HIT
        return {
            "acc@0.5": Task(right.float(), right, has),
            "recall_of_regions": Task(iou.amax(1), iou.amax(1) >= HIT, has),
        }

    def tasks(self, model: Vilbert, batch: Batch) -> dict[str, Task]:
        return self.figures(*self.look(model, batch))


class AnswerLoss(Joint):
    """An answer to a question about the image: cross-entropy over the classes of the corpus (VQA, section 3.3)."""

    score = "none"  # the alignment is not trained here

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.hidden, self.answer = nn.Linear(embed_dim, 2 * embed_dim), nn.Linear(2 * embed_dim, num_classes)

    def forward(self, model: Vilbert, batch: Batch) -> dict[str, Tensor]:
        task = self.tasks(model, batch)["answers"]
        right = share_of_mean(task.hits.float(), task.valid)
        return {"loss": share_of_mean(task.values, task.valid), "answers_acc": right.detach()}

    def tasks(self, model: Vilbert, batch: Batch) -> dict[str, Task]:
        check_model(model)
        tokens, has = caption_tokens(batch)
        found = model.find(batch.images, batch.extra)
        states: States = model(model.text_tokens(tokens), model.text.there(tokens), found)
        logits = at_least_float32(self.answer(F.gelu(self.hidden(model.pooled(states)))))
        valid = has & (batch.labels != NO_LABEL)
        labels = batch.labels.clamp(min=0)
        values = F.cross_entropy(logits, labels, reduction="none")
        return {"answers": Task(values, logits.argmax(1) == labels, valid)}
