"""The page of an evaluation: its counts are those of the answers, and names of classes stay text."""

import io
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image
from toys import PLAIN, put, toy

from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.evaluate import evaluate
from unicl_cli.jobs.evaluation_page import CLASSES, MISTAKES, PAIRS, evaluation_page, find_mistakes
from unicl_cli.jobs.evaluators.kept import Keep
from unicl_cli.jobs.prepare.plan.request import PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare

EVIL = "<img src=x onerror=alert(1)>"


def coloured(number: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((70, 90), 20 + number).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Seven classes, six or more images each; the toy guesses. One name is markup."""
    root = tmp_path_factory.mktemp("page")
    names = ["cat", "dog", "bird", "snow", "leopard", "photo", EVIL]
    lines = ["image,label,split"]
    lines += [f"images/{n}.png,{names[n % 7 if n < 42 else n % 3]},test" for n in range(70)]
    put(root, {f"images/{n}.png": coloured(n) for n in range(70)} | {"list.csv": "\n".join(lines).encode()})
    prepare(PrepareRequest((str(root / "list.csv"),), (), (), root / "corpus"), workers=1)
    kept: list = []
    settings = {"data": [str(root / "corpus")], "split": None, "batch": 16, "accelerator": PLAIN}
    document = evaluate(toy(), keep=Keep(answers=kept.append), **settings)
    return document, kept, [open_corpus(root / "corpus")]


class Cells(HTMLParser):
    """The text of each table cell, row by row, below each heading."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.heading, self.inside = "", ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        if tag == "td":
            self.tables[self.heading][-1].append("")

    def handle_data(self, data):
        if self.inside == "h2":
            self.heading = data
        elif self.inside == "td":
            self.tables[self.heading][-1][-1] += data


def test_the_pairs_are_the_counts_of_the_answers(evaluated):
    document, (answers,), _ = evaluated
    cells = Cells()
    cells.feed(evaluation_page(*evaluated))
    _, *rows = cells.tables["Confusion pairs"]
    pairs = list(zip(answers["class"], answers["predicted"], strict=True))
    assert len(rows) == min(PAIRS, len({pair for pair in pairs if pair[0] != pair[1]}))
    for _, label, predicted, count, share in rows:
        assert int(count) == pairs.count((label, predicted)) > 0
        assert share == f"{100 * int(count) / answers['class'].count(label):.1f}"
    counts = [int(row[3]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert document["data"][0]["top1"] < 1


def test_the_most_confident_mistakes_come_first_with_their_images(evaluated):
    _, (answers,), _ = evaluated
    mistakes = find_mistakes(answers)
    assert len(mistakes) == sum(not hit for hit in answers["correct"])
    assert [m.confidence for m in mistakes] == sorted((m.confidence for m in mistakes), reverse=True)
    page = evaluation_page(*evaluated)
    wall = page.split("Most confident mistakes")[1].split("</section>")[0]
    shown = [unescape(text) for text in re.findall(r"<small>labelled (.*?)</small>", wall)]
    assert shown == [f"{m.label} · {m.key}" for m in mistakes[:MISTAKES]]
    assert wall.count("data:image/jpeg;base64,") == len(shown)


def test_the_page_is_one_file_without_scripts_and_names_are_text(evaluated):
    page = evaluation_page(*evaluated)
    assert "<script" not in page
    assert EVIL not in page
    assert "&lt;img src=x onerror" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_many_classes_are_cut_and_counted(evaluated):
    document, kept, corpora = evaluated
    (entry,) = document["data"]
    many = [{"class": f"c{n}", "n": 2, "recall": (n % 3) / 2} for n in range(CLASSES + 5)]
    page = evaluation_page(document | {"data": [entry | {"per_class": many}]}, kept, corpora)
    assert f"The {CLASSES} lowest of {CLASSES + 5} classes" in page


def test_a_model_without_mistakes_has_a_page_too(evaluated):
    document, (answers,), corpora = evaluated
    right = answers | {"predicted": answers["class"], "correct": [True] * 70}
    page = evaluation_page(document, [right], corpora)
    assert "Confusion pairs" not in page
    assert "Recall per class" in page


def test_a_single_candidate_has_no_accuracy_to_show(evaluated):
    _, _, corpora = evaluated
    kept: list = []
    settings = {"data": [str(corpora[0].path)], "split": None, "batch": 16, "accelerator": PLAIN}
    document = evaluate(toy(), keep=Keep(answers=kept.append), candidates=("cat",), **settings)
    page = evaluation_page(document, kept, corpora)
    assert "one candidate" in page
    assert "Most confident mistakes" not in page
    assert "top-1" not in page
