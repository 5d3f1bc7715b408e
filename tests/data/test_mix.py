"""Batches as a function of (seed, step): for any number of workers and ranks, and from any step on."""

from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_corpora import CLASSES, SIZES, TEMPLATES, assert_same, corpus, picture, strands

from unicl_cli.contracts import NO_LABEL, NO_TEXT
from unicl_cli.core.batch_columns import PROMPT, PROMPTED
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.collate import HASH_KEYS, ROW_KEYS
from unicl_cli.data.loader import batches, load_images
from unicl_cli.data.mix import Draws, MixedCorpora, OnePass, TextChoice, order_of
from unicl_cli.data.text import text_hash
from unicl_cli.data.tokenizers import corpus_tokenizer
from unicl_cli.errors import UniclError


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return strands(corpus(tmp_path_factory.mktemp("c") / "both"))


@pytest.fixture(scope="module")
def tokenizer():
    return corpus_tokenizer(["a photo of a dog. the cat caption other labelled cup & saucer 0123456789"] * 3, 16)


def shown(tokenizer, tokens):
    """Ids to text, for people."""
    pieces = {number: piece for piece, number in tokenizer.library.get_vocab().items()}
    return "".join(pieces[i] for i in tokens.tolist() if i > 2).replace("Ġ", " ").strip()


def run(parts, tokenizer, *, steps=4, start=0, rank=0, world=1, workers=0, targets="unique", size=12, **options):
    shared = {"caption_targets": targets, "extra": None, "workers": workers, "pin_memory": False}
    shared["distinct"] = options.pop("distinct", True)
    labelled = {"labels": "auto", "by": "sample"} | {k: options.pop(k) for k in ("labels", "by") if k in options}
    mix = MixedCorpora(parts, TextChoice(*({"labelled": "mixed", "names": "first", "seed": 0} | options).values()))
    draws = Draws(order_of(mix.strands, **labelled, batch_size=size, seed=0), start, steps, rank, world)
    assert len(draws) == steps - start
    return list(batches(mix, draws, tokenizer, **shared))


def texts_of(batch, tokenizer):
    return [shown(tokenizer, batch.tokens[i]) if i != NO_TEXT else None for i in batch.text_index.tolist()]


def test_batches_have_the_shapes_and_types_of_the_contract(both, tokenizer):
    ((step, batch), *_) = run(both, tokenizer)
    assert step == 0
    assert batch.images.shape == (12, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    for column in (batch.text_index, batch.labels, batch.keys, batch.draws):
        assert column.shape == (12,)
        assert column.dtype == torch.int64
    assert batch.tokens.dtype == torch.int64
    assert batch.draws.tolist() == list(range(12))
    assert (batch.labels != NO_LABEL).sum() == 6


def test_texts_that_are_not_distinct_have_a_row_of_tokens_each(both, tokenizer):
    saved = 0
    for (_, once), (_, each) in zip(run(both, tokenizer), run(both, tokenizer, distinct=False), strict=True):
        assert texts_of(each, tokenizer) == texts_of(once, tokenizer)
        there = each.text_index[each.text_index != NO_TEXT]
        assert there.tolist() == list(range(len(each.tokens)))
        assert torch.equal(once.keys, each.keys)
        saved += len(each.tokens) - len(once.tokens)
    assert saved > 0


@pytest.mark.slow
def test_batches_are_the_same_for_any_number_of_spawned_workers(both, tokenizer):
    assert_same(run(both, tokenizer), run(both, tokenizer, workers=2))


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_ranks_are_the_batch_of_one(both, tokenizer, world):
    alone = run(both, tokenizer)
    ranks = [run(both, tokenizer, rank=rank, world=world) for rank in range(world)]
    for n, (step, batch) in enumerate(alone):
        parts = [of_rank[n][1] for of_rank in ranks]
        assert [of_rank[n][0] for of_rank in ranks] == [step] * world
        for name in ("images", "labels", "keys", "draws"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name)), name
        assert [t for p in parts for t in texts_of(p, tokenizer)] == texts_of(batch, tokenizer)


def test_starting_at_a_step_gives_what_follows_it(both, tokenizer):
    assert_same(run(both, tokenizer, steps=7)[4:], run(both, tokenizer, steps=7, start=4))


def test_the_text_of_a_row_depends_on_seed_step_and_row_alone(both):
    for texts in (TextChoice("mixed", "uniform", 3), TextChoice("mixed", "uniform", 3)):
        mix = MixedCorpora(both, texts)
        first = {(n, r, s): mix[n, r, s, 0].text for n in (0, 1) for r in range(9) for s in range(20)}
        again = {(n, r, s): mix[n, r, s, 77].text for n, r, s in reversed(first)}
        assert again == first
    other = MixedCorpora(both, TextChoice("mixed", "uniform", 4))
    assert {at: other[*at, 0].text for at in first} != first
    assert len({first[1, 3, s] for s in range(20)}) == 2, "both captions of a row are drawn"
    assert {first[0, 0, s] for s in range(20)} == {
        *(fill_template(t, n) for t in TEMPLATES for n in ("dog", "hound")),
        "labelled 0",
    }


@pytest.mark.parametrize(
    ("labelled", "expected"),
    [("prompt", {"a photo of a dog.", "the dog"}), ("caption", {"labelled 0"}),
     ("mixed", {"a photo of a dog.", "the dog", "labelled 0"})],
)  # fmt: skip
def test_a_row_with_label_and_captions_gets_the_text_asked_for(both, labelled, expected):
    mix = MixedCorpora(both, TextChoice(labelled, "first", 0))
    assert {mix[0, 0, step, 0].text for step in range(40)} == expected
    assert {mix[0, 1, step, 0].text for step in range(20)} == {"a photo of a cat.", "the cat"}, "no caption: a prompt"
    assert mix[0, 0, 0, 0].label == 0


def test_keys_are_label_else_row_else_the_hash_of_the_text(both, tokenizer):
    for targets in ("unique", "text_hash"):
        for step, batch in run(both, tokenizer, steps=6, targets=targets):
            mix = MixedCorpora(both, TextChoice("mixed", "first", 0))
            strand, rows = order_of(mix.strands, labels="auto", by="sample", batch_size=12, seed=0).batch(step)
            for n, (s, r) in enumerate(zip(strand.tolist(), rows.tolist(), strict=True)):
                drawn = mix[s, r, step, step * 12 + n]
                expected = {
                    True: drawn.label,
                    False: ROW_KEYS + drawn.row if targets == "unique" else HASH_KEYS | text_hash(drawn.text or ""),
                }[drawn.label != NO_LABEL]
                assert batch.keys[n] == expected
                assert drawn.row == (r if s == 0 else r + sum(SIZES)), "numbered through the whole mix"


def test_rows_of_equal_captions_are_positives_in_text_hash_mode(tmp_path, tokenizer):
    parts = strands(corpus(tmp_path / "c", ("captions",)))
    for targets, fewer in (("unique", False), ("text_hash", True)):
        keys = torch.cat([b.keys for _, b in run(parts, tokenizer, steps=2, size=22, targets=targets)])
        texts = [MixedCorpora(parts, TextChoice("mixed", "first", 0))[0, r, 0, 0].text for r in range(22)]
        assert (len(set(keys[:22].tolist())) < 22) is fewer
        assert len(set(texts)) < 22
        assert keys.min() >= (HASH_KEYS if fewer else ROW_KEYS)


def test_equal_texts_are_encoded_once(both, tokenizer):
    for _, batch in run(both, tokenizer, labelled="prompt", labels=1.0):
        distinct = {tuple(ids) for ids in batch.tokens.tolist()}
        assert len(distinct) == len(batch.tokens) <= 6
        assert sorted(set(batch.text_index.tolist())) == list(range(len(batch.tokens)))


def test_a_fraction_holds_every_smaller_one_and_a_limit_the_first_rows(tmp_path):
    opened = corpus(tmp_path / "c")
    table = opened.table("train", "labels")
    kept = []
    for fraction in (0.2, 0.5, 0.8, 1.0):
        part = strands(opened, fraction=fraction)[0]
        kept.append(set(range(22)) if part.rows is None else set(part.rows.tolist()))
        assert part.size == len(kept[-1]) == part.group_sizes.sum()
    assert kept[0] < kept[1] < kept[2] < kept[3]
    keys = table.column("key").to_pylist()
    (half, _) = strands(opened, fraction=0.5, limit=3)
    assert half.rows.tolist() == sorted(kept[1])[:3]
    mix = MixedCorpora([half], TextChoice("prompt", "first", 0))
    images = [torch.equal(mix[0, n, 0, 5].image, half.transform(picture(int(r)), 5)) for n, r in enumerate(half.rows)]
    assert images == [True] * 3
    assert len(keys) == 22
    assert strands(opened, limit=1000)[0].rows is None


def test_rows_of_a_part_of_a_corpus_are_each_visited(tmp_path, tokenizer):
    (part,) = strands(corpus(tmp_path / "c", ("labels",)), fraction=0.5)
    seen = {int(k) for _, b in run([part], tokenizer, steps=part.size, size=4) for k in b.draws // 4}
    drawn = {
        r
        for s in range(part.size)
        for r in order_of([part], labels="auto", by="sample", batch_size=4, seed=0).batch(s)[1]
    }
    assert drawn == set(range(part.size))
    assert seen == set(range(part.size))


def test_classes_of_two_corpora_meet_by_key(tmp_path, tokenizer):
    one, two = corpus(tmp_path / "a", ("labels",)), corpus(tmp_path / "b", ("labels",), classes=CLASSES[::-1])
    parts = [*strands(one), *strands(two, labels=[2, 1, 0])]
    parts = [
        p._replace(names=tuple(c.names for c in opened.classes)) for p, opened in zip(parts, (one, two), strict=True)
    ]
    mix = MixedCorpora(parts, TextChoice("prompt", "first", 0))
    for row_ in range(6):
        first, second = mix[0, row_, 0, 0], mix[1, row_, 0, 0]
        assert first.label == row_ % 3
        assert second.label == 2 - row_ % 3
        for drawn in (first, second):
            assert CLASSES[drawn.label].names[0] in drawn.text
        assert second.row == first.row + 22


def test_pictures_without_label_or_text_have_neither(tmp_path, tokenizer):
    parts = strands(corpus(tmp_path / "c", ("images",)), views=2)
    for _, batch in run(parts, tokenizer):
        assert set(batch.text_index.tolist()) == {NO_TEXT}
        assert set(batch.labels.tolist()) == {NO_LABEL}
        assert batch.tokens.shape[0] == 1, "never empty: every rank runs its text tower"
        assert batch.images.shape == (12, 2, 3, 8, 8)
        assert not torch.equal(batch.images[:, 0], batch.images[:, 1])
    assert run(parts, None)[0][1].tokens.tolist() == [[0]]


@pytest.mark.parametrize("share", ["auto", 0.25, 1.0, 0.0])
def test_label_rows_have_their_exact_share_of_every_batch(both, tokenizer, share):
    parts = [p for p in both if not (share == 0.0 and p.kind == "labels") and not (share == 1.0 and p.kind != "labels")]
    counts = {int((b.labels != NO_LABEL).sum()) for _, b in run(parts, tokenizer, steps=6, labels=share)}
    assert counts == {round(12 * (0.5 if share == "auto" else share))}


def test_whole_steps_take_turns_by_step(both, tokenizer):
    counts = [int((b.labels != NO_LABEL).sum()) for _, b in run(both, tokenizer, steps=8, labels=0.25, by="step")]
    assert sorted(counts) == [0] * 6 + [12] * 2


def test_weights_and_sizes_share_the_rows_of_a_kind(tmp_path):
    big, small = corpus(tmp_path / "a", ("captions",)), corpus(tmp_path / "b", ("captions",), sizes=[11])
    labels = strands(corpus(tmp_path / "l", ("labels",)))
    mixture = order_of(
        [*strands(big), *strands(small, weight=2.0), *labels], labels=0.5, by="sample", batch_size=16, seed=0
    )
    assert mixture.shares == [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]


def test_all_texts_that_can_be_drawn_reach_the_tokenizer(both):
    mix = MixedCorpora(both, TextChoice("mixed", "uniform", 0))
    possible = set(mix.all_texts())
    drawn = {mix[n, r, s, 0].text for n in (0, 1) for r in range(22) for s in range(12)}
    assert drawn <= possible
    assert {fill_template(t, n) for t in TEMPLATES for c in CLASSES for n in c.names} <= possible


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_shard_damaged_since_it_was_opened_is_one_line_from_any_worker(tmp_path, tokenizer, workers):
    parts = strands(corpus(tmp_path / "c"))
    shard = tmp_path / "c/data/train/captions.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UniclError) as caught:
        run(parts, tokenizer, workers=workers)
    assert caught.value.message.startswith(f"{shard}: damaged: ")
    assert "\n" not in caught.value.message
    assert "unicl prepare --repair -o" in caught.value.hint


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_decoded_names_its_shard_its_row_and_the_cure(tmp_path, tokenizer, workers):
    """As of a corpus that was made with another Pillow."""
    parts = strands(corpus(tmp_path / "c"))
    shard = tmp_path / "c/data/train/captions.parquet"
    table = pq.read_table(shard)
    cells = [{"bytes": b"RIFF\0\0\0\0WEBPnew kind", "path": None}] * len(table)
    at = table.schema.get_field_index("image")
    spoilt = table.set_column(at, table.schema.field("image"), pa.array(cells, table.schema.field("image").type))
    found = pq.read_metadata(shard)
    sizes = [found.row_group(number).num_rows for number in range(found.num_row_groups)]
    with pq.ParquetWriter(shard, spoilt.schema) as writer:
        for number, size in enumerate(sizes):
            writer.write_table(spoilt.slice(sum(sizes[:number]), size))
    with pytest.raises(UniclError) as caught:
        run(parts, tokenizer, workers=workers)
    keys = table.column("key").to_pylist()
    assert caught.value.message.startswith(f"{shard}: the image of row '")
    assert any(f"'{key}' cannot be used: broken" in caught.value.message for key in keys)
    assert "check the corpus with unicl prepare --verify -o " in caught.value.hint


def test_both_shows_the_caption_and_the_prompt_that_the_row_would_show_alone(both, tokenizer):
    caption, prompt, two = (
        dict(run(both, tokenizer, labels=1, labelled=choice)) for choice in ("caption", "prompt", "both")
    )
    met = 0
    for step, batch in two.items():
        assert texts_of(batch, tokenizer) == texts_of(caption[step], tokenizer)
        seconds = batch.extra[PROMPT].tolist()
        alone = texts_of(prompt[step], tokenizer)
        for row, second in enumerate(seconds):
            has_both = texts_of(caption[step], tokenizer)[row] != alone[row]
            assert (second != NO_TEXT) == has_both
            if has_both:
                assert shown(tokenizer, batch.tokens[second]) == alone[row]
                assert batch.extra[PROMPTED][row] == batch.labels[row]
                met += 1
        assert len({tuple(row) for row in batch.tokens.tolist()}) == len(batch.tokens), "texts are distinct"
    assert met > 3
    assert PROMPT not in caption[0].extra


def test_second_texts_have_a_row_each_where_texts_are_not_distinct(both, tokenizer):
    for _, batch in run(both, tokenizer, labels=1, labelled="both", distinct=False):
        used = [*batch.text_index.tolist(), *batch.extra[PROMPT].tolist()]
        assert sorted(x for x in used if x != NO_TEXT) == list(range(len(batch.tokens)))


def test_samples_without_images_have_the_numbers_of_their_rows(both, tokenizer):
    """All else is the same, and no image is read."""
    mix = MixedCorpora(both, TextChoice("mixed", "first", 0))
    numbered = mix.without_images()
    for at in ((0, 3, 1, 7), (1, 2, 0, 5)):
        plain, one = mix[at], numbered[at]
        assert one.image.tolist() == plain.row
        assert one._replace(image=None) == plain._replace(image=None)
    assert numbered.with_media().images is False
    assert numbered.row_bytes == 8
    assert both[0].table.read(0, image=False).image == b""
    assert both[0].table._cache[0, False, False].images is None


@pytest.mark.parametrize(("rows", "world"), [(4, 1), (4, 2), (7, 3), (100, 1), (100, 3), (1, 2)])
def test_one_pass_gives_each_row_once_and_every_rank_as_many_lists(both, rows, world):
    mix = MixedCorpora(both, TextChoice("mixed", "first", 0))
    passes = [OnePass(mix, rows, rank, world) for rank in range(world)]
    lists = [list(each) for each in passes]
    assert {len(each) for each in lists} == {len(passes[0])}
    assert all(0 < len(places) <= rows for each in lists for places in each)
    found = [mix[at].row for round in zip(*lists, strict=True) for places in round for at in places]
    assert found[: len(mix)] == list(range(len(mix)))
    assert set(found[len(mix) :]) <= {len(mix) - 1}, "the last row stands where a rank has none"
    images = torch.cat(list(load_images(mix, passes[0], 0, pin_memory=False)))
    assert torch.equal(images, torch.stack([mix[at].image for places in lists[0] for at in places]))
