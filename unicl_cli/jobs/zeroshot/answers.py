"""Answers to questions from scores: rows of images, with one answer for each group or taxonomy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unicl_cli.contracts import ClassName
from unicl_cli.evaluate.hierarchy import sum_up
from unicl_cli.evaluate.metrics import best_classes
from unicl_cli.inference.image_inputs import ImageInput
from unicl_cli.inference.scorer import Scorer
from unicl_cli.jobs.zeroshot.questions import Question, Wanted

Answer = dict[str, Any]
DIGITS = 6


class AnswerOptions(NamedTuple):
    """Options of an answer: ``none`` may win, classes may be ``independent``, no label below ``threshold``.

    With ``multi``, every class above its threshold is an answer; ``wanted`` are the questions that are asked.
    """

    top_k: int = 5
    none: bool = False
    independent: bool = False
    threshold: float | None = None
    by_cosine: bool = False
    multi: bool = False
    wanted: Wanted = Wanted()


class Judge(NamedTuple):
    """Turns scores into rows; a column after those of the classes is the background."""

    scorer: Scorer
    classes: Sequence[ClassName]
    questions: Sequence[Question]
    options: AnswerOptions
    warnings: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the questions; empty if there is one, which has no name in a row."""
        return tuple(question.name for question in self.questions) if len(self.questions) > 1 else ()

    @property
    def most(self) -> int:
        """Maximum number of classes of an answer."""
        return max(len(question.shown) for question in self.questions)

    @property
    def has_paths(self) -> bool:
        return any(question.has_paths for question in self.questions)

    def probabilities(self, scores: Tensor, question: Question) -> tuple[Tensor, Tensor | None]:
        """Turn scores (n, C or C + 1) into probabilities (n, shown), and (n,) of "none of these" if asked for.

        The leaves of a taxonomy exclude each other, also under a sigmoid: if exactly one of several independent classes
        is true, its probability is the softmax of their logits.
        """
        logits, none = self.scorer.logits(scores), self.options.none
        count, background = len(question.competing), logits[:, -1:]
        if question.taxonomy is None and (self.options.independent or self.scorer.sigmoid):
            shift = 0.0 if self.scorer.sigmoid else background
            found = (logits[:, question.shown] - shift).sigmoid()
            return found, background[:, 0].sigmoid() if none and self.scorer.sigmoid else None
        columns = [logits[:, question.competing], *([background] if none else [])]
        together = torch.cat(columns, 1)
        if question.taxonomy is None:
            shares = together.softmax(1)
            return shares[:, :count], shares[:, -1] if none else None
        shares = together.double().softmax(1)
        leaves = shares.new_zeros(len(scores), len(self.classes)).index_copy_(1, question.competing, shares[:, :count])
        return sum_up(leaves, question.taxonomy), shares[:, -1] if none else None

    def rows(self, images: Sequence[ImageInput], scores: Tensor, problems: Sequence[str | None]) -> list[Answer]:
        """Turn scores (n, C or C + 1) and problems into rows ``{"path", "label", "prob", "top", "error"}``.

        With several questions, ``groups`` has the answer to each, and ``top`` the best class of each.
        """
        scores = scores.cpu()
        answers = [self.answer(scores, question) for question in self.questions]
        rows: list[Answer] = []
        for row, (image, problem) in enumerate(zip(images, problems, strict=True)):
            several: Answer = {"groups": []} if len(answers) > 1 else {}
            if problem is not None:
                rows.append({"path": image.path, **unanswered(), "top": [], **several, "error": problem})
                continue
            own = [found[row] for found in answers]
            if len(own) == 1:
                none = {"none": own[0].pop("none")} if "none" in own[0] else {}
                rows.append({"path": image.path, **own[0], "error": None, **none})
            else:
                named = [{"group": question.name, **each} for question, each in zip(self.questions, own, strict=True)]
                rows.append({"path": image.path, **join_answers(own), "groups": named, "error": None})
        return rows

    def answer(self, scores: Tensor, question: Question) -> list[Answer]:
        """Answer one question about each image: ``{"label", "prob", "top"}``, with "none" if it was asked for."""
        found, none = self.probabilities(scores, question)
        shown = found if question.taxonomy is None else found[:, question.shown]
        ranked = scores[:, question.shown] if question.taxonomy is None else shown
        _, order = best_classes(ranked, self.options.top_k)
        answers: list[Answer] = []
        for row, places in enumerate(order.tolist()):
            top = [
                self.item(question, label, found[row], float(shown[row, place]), float(scores[row, label]))
                for place, label in zip(places, question.shown[places].tolist(), strict=True)
            ]
            answer = {"label": top[0]["label"], "prob": top[0]["prob"], "top": top}
            answers.append(self.withhold_label(answer, None if none is None else round(float(none[row]), DIGITS)))
        return answers

    def item(self, question: Question, label: int, found: Tensor, prob: float, score: float) -> Answer:
        """Return a class as an answer has it; ``found`` has the probabilities of all classes of a taxonomy."""
        facts = name_class(self.classes[label]) | {"prob": round(prob, DIGITS)}
        facts["cosine"] = round(score, DIGITS) if self.scorer.cosines else None
        if question.has_paths:
            path = question.path(label)
            facts["lineage"] = [
                name_class(self.classes[number]) | {"prob": round(float(found[number]), DIGITS)} for number in path
            ]
        return facts

    def withhold_label(self, answer: Answer, none: float | None) -> Answer:
        """Remove the label if "none" is likelier or the best class is below the threshold."""
        first = answer["top"][0]
        if none is not None:
            answer |= {"label": None, "prob": none} if none > first["prob"] else {}
            answer["none"] = none
        if self.options.threshold is not None:
            value = first["cosine"] if self.options.by_cosine else first["prob"]
            answer |= {"label": None} if value < self.options.threshold else {}
        return answer


def unanswered() -> Answer:
    return {"label": None, "prob": None}


def name_class(item: ClassName) -> Answer:
    """Return the name of a class, and its group if it has one."""
    return {"label": item.names[0], **({"group": item.group} if item.group else {})}


def join_answers(answers: Sequence[Answer]) -> Answer:
    """Return the most probable of several answers, with the best class of each in the same order."""
    given = [each for each in answers if each["label"] is not None]
    best = max(given, key=lambda each: each["prob"], default=unanswered())
    top = sorted((each["top"][0] for each in answers), key=lambda item: -item["prob"])
    return {"label": best["label"], "prob": best["prob"], "top": top}
