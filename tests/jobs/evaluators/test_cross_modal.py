"""The evaluator `cross-modal` against a count by hand, and its chance level against random orders."""

import random

import pytest
import torch
from hearing import hearing
from torch.nn import functional as F
from toys import PLAIN, filled, toy

from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.evaluate import evaluate
from unicl_cli.jobs.evaluators.cross_modal import CrossModalEvaluator, random_recalls


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from unicl_cli.cli import main

    out = tmp_path_factory.mktemp("stripes") / "c"
    sources = ["--labels", "odd-stripes?rows=14&profile=true", "--captions", "odd-stripes?rows=9&profile=true"]
    assert main(["prepare", *sources, "-o", str(out), "--workers", "1", "-q"]) == 0
    return open_corpus(out)


def rows_of_split(corpus):
    """(image, texts, profile or None, label, features of image and profile) of all rows of test, by hand."""
    loaded = hearing()
    for kind in corpus.kinds("test"):
        table = corpus.table("test", kind)
        for row in range(len(table)):
            sample = table.read(row, media=True)
            profile = sample.media.get("profile")
            with torch.no_grad():
                seen = loaded.step.model.encode_image(loaded.transform(sample.image)[None]).embed[0]
                heard = None
                if profile is not None:
                    heard = loaded.step.model.encode_extra("profile", loaded.step.model.media[0].read(profile)[None])
            yield sample, profile, seen, None if heard is None else heard.embed[0]


def count_hits(queries, candidates, belongs, k):
    """The share of queries with an answer before k candidates that are none and score at least as high."""
    hits = 0
    for q, query in enumerate(queries):
        scores = torch.stack([query @ candidate for candidate in candidates])
        best = max(float(scores[c]) for c in range(len(candidates)) if belongs(q, c))
        above = sum(float(scores[c]) >= best - 1e-6 and not belongs(q, c) for c in range(len(candidates)))
        hits += above < k
    return hits / len(queries)


def test_recalls_between_images_and_media_are_those_of_a_count_by_hand(corpus):
    figures = CrossModalEvaluator()(Encoder(hearing()), corpus, "test", batch=4)
    both = [row for row in rows_of_split(corpus) if row[3] is not None]
    images, sounds = [row[2] for row in both], [row[3] for row in both]

    def belongs(q, c):  # an equal image has the sound, or an equal sound
        return any(row[0].image == both[q][0].image and row[1] == both[c][1] for row in both)

    found = figures["retrieval"]["image_to_profile"]
    assert found["n"] == len(both)
    for k in (1, 5, 10):
        assert found[f"r{k}"] == pytest.approx(count_hits(images, sounds, belongs, k))
        back = figures["retrieval"]["profile_to_image"][f"r{k}"]
        assert back == pytest.approx(count_hits(sounds, images, lambda q, c: belongs(c, q), k))


def test_media_and_texts_are_compared_on_rows_that_have_both(corpus):
    model = hearing()
    figures = CrossModalEvaluator()(Encoder(model), corpus, "test", batch=4)
    both = [row for row in rows_of_split(corpus) if row[3] is not None and row[0].texts]
    texts = [row[0].texts[0] for row in both]
    with torch.no_grad():
        read = list(F.normalize(model.step.model.encode_text(model.tokenizer(texts)).embed, dim=1))

    def belongs(q, c):
        return any(row[1] == both[q][1] and text == texts[c] for row, text in zip(both, texts, strict=True))

    found = figures["retrieval"]["profile_to_text"]
    assert found["n"] == len(both)
    for k in (1, 5):
        assert found[f"r{k}"] == pytest.approx(count_hits([row[3] for row in both], read, belongs, k))
    assert set(figures["retrieval"]) == {
        *("image_to_profile", "profile_to_image", "image_to_text", "text_to_image"),
        *("profile_to_text", "text_to_profile"),
    }


def test_class_names_classify_each_modality_on_rows_with_a_label(corpus):
    model = hearing()
    figures = CrossModalEvaluator()(Encoder(model), corpus, "test", batch=4)["zeroshot"]
    names = [each.names[0] for each in corpus.classes]
    with torch.no_grad():
        classes = torch.stack(
            [model.step.model.encode_text(model.tokenizer(own)).embed.mean(0) for own in filled(model, *names)]
        )
    classes = F.normalize(classes, dim=1)
    rows = [row for row in rows_of_split(corpus) if row[0].label >= 0]
    for name, place in (("image", 2), ("profile", 3)):
        own = [row for row in rows if row[place] is not None]
        right = sum(int((row[place] @ classes.T).argmax()) == row[0].label for row in own)
        assert figures[name]["n"] == len(own)
        assert figures[name]["top1"] == pytest.approx(right / len(own))
        assert figures[name]["chance"] == 1 / 2


@pytest.mark.parametrize("right", [1, 2, 5])
def test_chance_is_the_recall_of_random_orders(right):
    rng, total, times = random.Random(0), 12, 4000
    found = random_recalls(torch.tensor([right]), total)
    for k in (1, 5, 10):
        hits = sum(min(rng.sample(range(total), right)) < k for _ in range(times))
        assert found[f"chance_r{k}"] == pytest.approx(hits / times, abs=0.03)
    assert random_recalls(torch.tensor([1.0]), 3)["chance_r10"] == 1


def test_a_model_without_media_has_nothing_to_measure(corpus):
    assert CrossModalEvaluator()(Encoder(toy()), corpus, "test", batch=4) == {}
    with pytest.raises(UniclError, match="cross-modal finds nothing to measure"):
        evaluate(toy(), data=[str(corpus.path)], split="test", batch=4, accelerator=PLAIN, evaluators=["cross-modal"])


def test_a_collapsed_model_is_told(corpus):
    model = hearing()
    with torch.no_grad():
        for parameter in model.step.parameters():
            parameter.zero_()
        model.step.model.see.bias.fill_(1)
        model.step.model.hear.bias.fill_(1)
    figures = CrossModalEvaluator()(Encoder(model), corpus, "test", batch=4)
    assert "collapsed: image to profile: all items score the same" in figures["warnings"]
    assert figures["retrieval"]["image_to_profile"]["r1"] < 0.5


def test_few_rows_are_an_even_choice(corpus):
    figures = CrossModalEvaluator()(Encoder(hearing()), corpus, "test", batch=4, limit=4)
    assert figures["zeroshot"]["image"]["n"] == 4
