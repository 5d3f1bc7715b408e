"""The zero-shot classifier with real toy text towers: what normalisation, templates and duplicates do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from unicl_cli.data.tokenizers import corpus_tokenizer
from unicl_cli.evaluate.classifier import prompts_of, zeroshot_classifier

TEMPLATES = ["a photo of a {}.", "{}", "an old drawing of {c}", "the {} in the long grass behind the house"]
NAMES = [["cat"], ["dog", "hound"], ["bird & bee"], ["snow leopard"]]


class Bag(nn.Module):
    """A mean of embeddings; lengths of the vectors differ by text, and are ``factor`` times longer for long texts."""

    def __init__(self, vocab_size: int, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(vocab_size, 8)
        self.factor = factor
        self.calls: list[int] = []

    @torch.no_grad()
    def forward(self, tokens):
        self.calls.append(len(tokens))
        real = tokens != 0
        mean = (self.table(tokens) * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return torch.where(real.sum(1, keepdim=True) > 8, self.factor * mean, mean)


@pytest.fixture(scope="module")
def tokenizer():
    return corpus_tokenizer([*(t.replace("{}", "cat") for t in TEMPLATES), "dog hound bird leopard"], 16)


def build(tokenizer, names=NAMES, templates=TEMPLATES, **options):
    tower = options.pop("tower", None) or Bag(tokenizer.vocab_size)
    return zeroshot_classifier(prompts_of(names, templates), encode_text=tower, tokenizer=tokenizer, **options)


def test_each_class_is_the_normalised_mean_of_its_normalised_prompts(tokenizer):
    tower, got = Bag(tokenizer.vocab_size), build(tokenizer)
    for label, names in enumerate(NAMES):
        prompts = [t.replace("{}", n).replace("{c}", n) for n in names for t in TEMPLATES]
        each = torch.stack([F.normalize(tower(tokenizer([prompt]))[0], dim=0) for prompt in prompts])
        torch.testing.assert_close(got.weights[label], F.normalize(each.mean(0), dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(got.weights.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_the_length_of_a_prompt_vector_changes_nothing(tokenizer):
    plain = build(tokenizer)
    scaled = build(tokenizer, tower=Bag(tokenizer.vocab_size, factor=10.0))
    torch.testing.assert_close(scaled.weights, plain.weights, rtol=0, atol=1e-6)


@given(st.permutations(TEMPLATES))
@settings(max_examples=10, deadline=None)
def test_the_order_of_templates_changes_nothing(templates):
    tokenizer = corpus_tokenizer([*TEMPLATES, "cat dog hound bird"], 16)
    torch.testing.assert_close(
        build(tokenizer, templates=templates).weights, build(tokenizer).weights, rtol=0, atol=1e-6
    )


def test_every_distinct_prompt_is_encoded_once(tokenizer):
    tower = Bag(tokenizer.vocab_size)
    got = build(tokenizer, names=[["cat"], ["dog"], ["cat"]], templates=["{}", "a {}"], tower=tower, batch=3)
    assert tower.calls == [3, 1]
    assert got.prompts == 4


def test_classes_with_the_same_prompts_are_named_and_tie_exactly(tokenizer):
    got = build(tokenizer, names=[["cat"], ["dog", "hound"], ["cat"], ["hound", "dog"], ["bird"]])
    assert got.duplicates == ((0, 2), (1, 3))
    assert got.first.tolist() == [0, 1, 0, 1, 4]
    rounded = got.weights.clone()
    rounded[2:4] += 1e-7  # as a matrix product may round equal columns
    scores = got._replace(weights=rounded).cosines(F.normalize(torch.randn(33, 8), dim=1))
    assert torch.equal(scores[:, 0], scores[:, 2])
    assert torch.equal(scores[:, 1], scores[:, 3])


def test_batches_of_prompts_change_nothing(tokenizer):
    one, all_at_once = build(tokenizer, batch=1), build(tokenizer, batch=1000)
    torch.testing.assert_close(one.weights, all_at_once.weights, rtol=0, atol=1e-6)


def test_prompts_beyond_the_context_are_counted(tokenizer):
    names = [["cat"], ["the cat that sat on the mat and saw another cat that sat on another mat"]]
    assert build(tokenizer, names=names, templates=["{}"]).cut == 1
    assert build(tokenizer, names=[["cat"]], templates=["{}"]).cut == 0


def test_without_unit_length_the_weights_are_the_plain_means(tokenizer):
    tower = Bag(tokenizer.vocab_size)
    got = build(tokenizer, names=[["cat"], ["dog"]], templates=["{}"], unit=False)
    expected = torch.cat([tower(tokenizer(["cat"])), tower(tokenizer(["dog"]))])
    torch.testing.assert_close(got.weights, expected)


def test_braces_and_percent_signs_in_names_are_data(tokenizer):
    got = build(tokenizer, names=[["{0} %s"], ["cat"]], templates=["a {} {kind}"])
    assert got.weights.shape == (2, 8)
    assert got.duplicates == ()


def test_a_classifier_without_classes_is_a_mistake_of_the_caller(tokenizer):
    with pytest.raises(ValueError, match="at least one class"):
        build(tokenizer, names=[])
