"""Chunks of rows to batches: the same batches for any number of workers, chunk and way, and what workers die of."""

import os
import signal
from copy import copy
from itertools import islice

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import processors
from toy_corpora import TEMPLATES, assert_same, corpus, strands

from unicl_cli.contracts import NO_TEXT, Drawn
from unicl_cli.core.batch_columns import PROMPT
from unicl_cli.data import loader as module
from unicl_cli.data.collate import Extra, collate
from unicl_cli.data.loader import AHEAD, ChunkedDraws, Chunks, Supply, batches, choose_supply, chunk_rows, join_chunks
from unicl_cli.data.mix import Draws, MixedCorpora, TextChoice, order_of
from unicl_cli.data.tokenizers import TextTokenizer, class_tokenizer, corpus_tokenizer
from unicl_cli.errors import UniclError

SIZE = 30


def seen(drawn, tokens, text_index):
    """A hook that needs the whole share: how often each text of it comes, and what its images hold."""
    counts = torch.bincount(text_index[text_index != NO_TEXT], minlength=len(tokens))
    times = torch.where(text_index == NO_TEXT, 0, counts[text_index.clamp(min=0)])
    return {"times": times, "light": torch.stack([row.image.float().mean() for row in drawn])}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return strands(corpus(tmp_path_factory.mktemp("c") / "both"), views=2)


@pytest.fixture(scope="module")
def tokenizer():
    return corpus_tokenizer([*TEMPLATES, "caption other labelled 0123456789 dog cat cup & saucer"] * 3, 16)


def draws_of(parts, steps=3, rank=0, world=1):
    mix = MixedCorpora(parts, TextChoice("mixed", "uniform", 0))
    return mix, Draws(order_of(mix.strands, labels="auto", by="sample", batch_size=SIZE, seed=0), 0, steps, rank, world)


def run(parts, tokenizer, workers, **options):
    mix, draws = draws_of(parts, **options)
    fixed = {"caption_targets": "text_hash", "extra": Extra([seen]), "distinct": True, "pin_memory": False}
    return list(batches(mix, draws, tokenizer, workers=workers, **fixed))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [1, 7, 15, 30, 100])
def test_a_batch_is_the_same_from_chunks_of_any_size(parts, tokenizer, size, shared):
    mix, draws = draws_of(parts)
    places = ChunkedDraws(draws, size)
    assert len(list(places)) == len(places) == 3 * places.in_a_batch
    made = map(Chunks(mix, shared=shared).__getitem__, places)
    for (_, whole), at in zip(run(parts, tokenizer, 0), draws, strict=True):
        drawn, images = join_chunks(islice(made, places.in_a_batch), SIZE, pin_memory=False)
        batch = collate(drawn, images, tokenizer=tokenizer, caption_targets="text_hash", extra=Extra([seen]))
        assert [(row.row, row.draw) for row in drawn] == [(mix[place].row, place[3]) for place in at]
        for name in ("images", "tokens", "text_index", "labels", "keys", "draws"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)), name
        for name in ("times", "light"):
            assert torch.equal(batch.extra[name], whole.extra[name])
    assert next(made, None) is None


def test_a_hook_sees_the_whole_share(parts, tokenizer):
    (_, batch), *_ = run(parts, tokenizer, 0)
    assert batch.extra["times"].sum() > (batch.extra["times"] > 0).sum(), "texts that come more than once"
    assert batch.extra["light"].shape == (SIZE,)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "world"), [(1, 1), (3, 2)])
def test_batches_are_the_same_for_any_number_of_workers(parts, tokenizer, monkeypatch, workers, world):
    monkeypatch.setattr(module, "LEAST_CHUNK", 4)
    alone = run(parts, tokenizer, 0, rank=world - 1, world=world)
    helped = run(parts, tokenizer, workers, rank=world - 1, world=world)
    assert_same([(s, b._replace(extra={})) for s, b in alone], [(s, b._replace(extra={})) for s, b in helped])
    for (_, one), (_, other) in zip(alone, helped, strict=True):
        assert torch.equal(one.extra["light"], other.extra["light"])


def test_all_workers_make_a_batch_together_unless_it_is_small():
    assert chunk_rows(4096, 0) == 4096
    assert [chunk_rows(4096, workers) for workers in (1, 8, 32, 64)] == [128, 128, 128, 64]
    assert [chunk_rows(256, workers) for workers in (1, 2, 3, 8, 64)] == [128, 128, 86, 32, 16]
    assert chunk_rows(5, 8) == 5


def test_what_is_kept_ready_is_bounded_by_its_bytes_and_by_shared_memory():
    chunk = 128 * 3 * 224 * 224
    for workers in (1, 2, 8, 64):
        way = choose_supply(chunk, workers, None)
        assert way.shared
        assert way.chunks == 2 or way.chunks * workers * chunk <= AHEAD
    assert choose_supply(1000, 4, None).chunks == 16
    assert choose_supply(chunk, 8, 64_000_000 * 3 // 4) == Supply(3, shared=False), "a container's shared memory"
    assert choose_supply(chunk, 8, 3 * 8 * chunk) == Supply(2, shared=True)
    assert not choose_supply(chunk, 8, 3 * 8 * chunk - 1).shared
    assert choose_supply(chunk, 2, 10**11) == choose_supply(chunk, 2, None)


def test_a_chunk_for_which_shared_memory_is_lacking_takes_the_pipe(parts, monkeypatch):
    mix, draws = draws_of(parts)
    places = next(iter(draws))
    whole = Chunks(mix, shared=True)[places]
    assert whole.images.is_shared()

    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    other = Chunks(mix, shared=True)[places]
    assert isinstance(other.images, np.ndarray)
    assert np.array_equal(other.images, whole.images.numpy())


def test_processes_of_one_machine_share_its_shared_memory(monkeypatch):
    alone = module.free_shared_memory()
    if alone is None:
        pytest.skip("no /dev/shm here")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert module.free_shared_memory() == pytest.approx(alone / 4, rel=0.2)


class Deadly(MixedCorpora):
    """A mix whose row 3 ends the worker that reads it, as the system does when memory is short."""

    def __getitem__(self, at):
        if at[3] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(at)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(parts, tokenizer):
    _, draws = draws_of(parts)
    mix = Deadly(parts, TextChoice("mixed", "uniform", 0))
    fixed = {"caption_targets": "unique", "extra": None, "distinct": True, "pin_memory": False}
    with pytest.raises(UniclError, match=r"a loader worker died: DataLoader worker \(pid") as caught:
        list(batches(mix, draws, tokenizer, workers=1, **fixed))
    assert "\n" not in caught.value.message
    assert "lower data.workers" in caught.value.hint


@pytest.mark.slow
def test_pictures_by_pipe_are_those_of_shared_memory(parts, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "free_shared_memory", lambda: 0)
    alone, piped = run(parts, tokenizer, 0), run(parts, tokenizer, 2)
    for (_, one), (_, other) in zip(alone, piped, strict=True):
        assert torch.equal(one.images, other.images)


def rows_of_texts(*rows):
    blank = torch.zeros(3, 2, 2)
    return [
        Drawn(n, n, 0, blank, shown, text, 7 if text and shown < 0 else 0, {}, shown=shown)
        for n, (shown, text) in enumerate(rows)
    ]


def test_prompts_begin_with_a_token_of_their_own_and_share_no_row_with_captions(tokenizer):
    marked = copy(tokenizer)
    marked.begin_prompts(999)
    rows = rows_of_texts((0, "a dog"), (-1, "a dog"), (0, "a dog"), (-1, None))
    options = {"caption_targets": "unique", "extra": None}
    plain = collate(rows, torch.zeros(4), tokenizer=tokenizer, **options)
    batch = collate(rows, torch.zeros(4), tokenizer=marked, **options)
    assert batch.text_index.tolist() == plain.text_index.tolist() == [0, 1, 0, NO_TEXT]
    assert batch.tokens[:, 0].tolist() == [999, plain.tokens[0, 0]]
    assert torch.equal(batch.tokens[:, 1:], plain.tokens[:, 1:])
    assert collate(rows[3:], torch.zeros(1), tokenizer=marked, **options).tokens[0, 0] == plain.tokens[0, 0]
    assert torch.equal(marked(["a dog"]), plain.tokens[:1]), "evaluation uses the tokenizer itself, which marks nothing"
    marked.begin_prompts(None)
    assert torch.equal(collate(rows, torch.zeros(4), tokenizer=marked, **options).tokens, plain.tokens)


def test_second_texts_begin_as_prompts_and_are_never_a_row_of_an_equal_caption(tokenizer):
    marked = copy(tokenizer)
    marked.begin_prompts(999)
    rows = [row._replace(prompt="a dog", prompted=3) for row in rows_of_texts((-1, "a dog"), (-1, "a cat"))]
    options = {"tokenizer": marked, "caption_targets": "unique", "extra": None, "two_texts": True}
    for distinct, seconds in ((True, [2, 2]), (False, [2, 3])):
        batch = collate(rows, torch.zeros(2), distinct=distinct, **options)
        assert batch.text_index.tolist() == [0, 1]
        assert batch.extra[PROMPT].tolist() == seconds
        assert (batch.tokens[:, 0] == 999).tolist() == [False, False, *(True for _ in set(seconds))]


def test_equal_prompts_of_two_classes_are_two_texts_for_rows_may_know_the_group_of_one_alone(tokenizer):
    rows = rows_of_texts((0, "an orange"), (1, "an orange"), (-1, "an orange"), (1, "an orange"), (-1, "an orange"))
    batch = collate(rows, torch.zeros(5), tokenizer=tokenizer, caption_targets="unique", extra=None)
    assert batch.text_index.tolist() == [0, 1, 2, 1, 2]


def test_a_tokenizer_without_a_start_token_cannot_begin_prompts():
    with pytest.raises(UniclError, match="puts no start token before a text"):
        class_tokenizer(["dog", "cat"]).begin_prompts(2)
    library = Library.from_str(corpus_tokenizer(["a dog"], 8).library.to_str())
    end = [("<end_of_text>", 2)]
    library.post_processor = processors.TemplateProcessing(single="$A <end_of_text>", special_tokens=end)
    with pytest.raises(UniclError, match=r"model\.text\.prefix"):
        TextTokenizer(library, 8, clean=False).begin_prompts(999)
