"""Retrieval against a loop over dense scores; ties, collapse and chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from unicl_cli.evaluate.retrieval import Gallery, answers_of, rank_queries, recalls


def loop_ranks(queries, gallery, query_ids, gallery_ids):
    out = []
    for query, own in zip(queries.double(), query_ids.tolist(), strict=True):
        scores = (gallery.double() @ query).tolist()
        best = max(score for score, item in zip(scores, gallery_ids.tolist(), strict=True) if item == own)
        out.append(sum(s >= best for s, item in zip(scores, gallery_ids.tolist(), strict=True) if item != own))
    return out


def case(seed: int, images: int, captions: list[int]):
    generator = torch.Generator().manual_seed(seed)
    owners = torch.tensor([image for image in range(images) for _ in range(captions[image])])
    pictures = F.normalize(torch.randn(images, 6, generator=generator), dim=1)
    texts = F.normalize(pictures[owners] + torch.randn(len(owners), 6, generator=generator), dim=1)
    return pictures, texts, owners


@given(st.integers(0, 1000), st.lists(st.integers(1, 4), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_recalls_equal_a_loop_with_uneven_captions(seed, captions):
    pictures, texts, owners = case(seed, len(captions), captions)
    found = recalls(pictures, texts, torch.arange(len(texts)), owners)
    places = torch.arange(len(pictures))
    for way, expected in (
        ("text_to_image", loop_ranks(texts, pictures, owners, places)),
        ("image_to_text", loop_ranks(pictures, texts, places, owners)),
    ):
        for k in (1, 5, 10):
            assert found[way][f"r{k}"] == pytest.approx(sum(rank < k for rank in expected) / len(expected))
    assert (found["images"], found["texts"]) == (len(pictures), len(texts))


def test_chunks_change_nothing(monkeypatch):
    pictures, texts, owners = case(0, 40, [3] * 40)
    whole = recalls(pictures, texts, torch.arange(len(texts)), owners)
    monkeypatch.setattr("unicl_cli.evaluate.retrieval.KEPT_SCORES", 130)
    assert recalls(pictures, texts, torch.arange(len(texts)), owners) == whole


def test_a_collapsed_model_finds_nothing_and_says_so():
    same = F.normalize(torch.ones(1, 7), dim=1)
    # short vectors, so that float32 can tell differences of 1e-7: rounding would rank
    pictures = 0.1 * same + 1e-7 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    found = recalls(pictures, same.expand(100, 7), torch.arange(100), torch.arange(50).repeat_interleave(2))
    assert found["collapsed"]
    assert all(found[way][k] == 0 for way in ("text_to_image", "image_to_text") for k in ("r1", "r5", "r10"))


def test_a_model_that_sees_something_is_not_called_collapsed():
    pictures, texts, owners = case(0, 5, [1] * 5)
    assert "collapsed" not in recalls(pictures, texts, torch.arange(5), owners)


def test_perfect_embeddings_find_everything():
    eye = torch.eye(12)
    found = recalls(eye, eye, torch.arange(12), torch.arange(12))
    assert found["text_to_image"] == found["image_to_text"] == {"r1": 1.0, "r5": 1.0, "r10": 1.0}


def test_an_equal_caption_of_another_image_is_a_hit():
    images = torch.eye(3)
    texts = torch.eye(3)[:2]
    # images 0 and 1 share the first caption
    found = recalls(images, texts, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]))
    assert found["image_to_text"]["r1"] == pytest.approx(1 / 3)  # 1 and 2 find another text first
    assert found["text_to_image"]["r1"] == pytest.approx(2 / 3)


def test_an_equal_image_under_another_name_is_a_hit():
    """Six images as five rows each, a caption a row: the copies tie, and each is right."""
    images, texts = (
        torch.eye(6).repeat_interleave(5, 0),
        F.normalize(torch.eye(6).repeat_interleave(5, 0) + 0.01, dim=1),
    )
    rows = torch.arange(30)
    alone = recalls(images, texts, rows, rows)
    assert (alone["text_to_image"]["r1"], alone["image_to_text"]["r1"]) == (0, 0)
    found = recalls(images, texts, rows, rows, torch.arange(6).repeat_interleave(5))
    assert (found["text_to_image"]["r1"], found["image_to_text"]["r1"]) == (1, 1)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_ranks_of_repeated_images_and_texts_equal_a_loop(data):
    images, texts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    owners = list(range(images)) + data.draw(st.lists(st.integers(0, images - 1), max_size=6))
    rows = data.draw(st.lists(st.integers(0, texts - 1), min_size=len(owners), max_size=len(owners)))
    same = data.draw(st.lists(st.integers(0, 2), min_size=images, max_size=images))
    ids = torch.tensor([sorted(set(same)).index(number) for number in same])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    seen, read = torch.randn(images, 4, generator=generator), torch.randn(texts, 4, generator=generator)
    found = recalls(seen, read, torch.tensor(rows), torch.tensor(owners), ids)
    right = {(int(ids[image]), row) for image, row in zip(owners, rows, strict=True)}
    scores = (seen @ read.T).tolist()
    to_image, to_text = [], []
    for row in rows:
        best = max(scores[i][row] for i in range(images) if (int(ids[i]), row) in right)
        to_image.append(sum(scores[i][row] >= best and (int(ids[i]), row) not in right for i in range(images)))
    for i in range(images):
        best = max(scores[i][row] for row in rows if (int(ids[i]), row) in right)
        to_text.append(sum(scores[i][row] >= best and (int(ids[i]), row) not in right for row in rows))
    for way, ranks in (("text_to_image", to_image), ("image_to_text", to_text)):
        for k in (1, 5, 10):
            assert found[way][f"r{k}"] == pytest.approx(sum(rank < k for rank in ranks) / len(ranks))


def test_one_picture_with_one_text_is_found():
    found = recalls(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0]), torch.tensor([0]))
    assert found["text_to_image"]["r1"] == 1.0
    assert "collapsed" not in found


def test_ranks_are_pessimistic_about_ties():
    gallery = Gallery(torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]]), torch.arange(3), torch.arange(3))
    answers = answers_of(torch.arange(3), torch.arange(3))
    found, spread = rank_queries(torch.tensor([[1.0, 0], [0, 1.0]]), torch.tensor([0, 2]), gallery, answers)
    assert found.tolist() == [1, 0]
    assert spread == 1.0
