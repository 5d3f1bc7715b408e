"""CLIP's ids against open_clip's own tokenizer; the fitted tokenizer is a function of its texts; a table of classes."""

import html
import json
import pickle
import random
import subprocess
import sys

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from unicl_cli.core.prompts import load_templates
from unicl_cli.data.tokenizers import class_tokenizer, clip_tokenizer, corpus_tokenizer, load_tokenizer
from unicl_cli.errors import UniclError

HAND = [
    "A Photo of a CAT",
    "don't, we'll, I'm, they've, he'd, it's, you're",
    "caf&eacute; &amp;amp; bar &lt;b&gt;",
    "cafÃ© “quoted” – dash",
    "x" * 500,
    "word " * 200,
    "안녕하세요 고양이",
    "🏳️‍🌈 👩‍👩‍👧 😀😀",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดี",
    "ＦＵＬＬ　ｗｉｄｔｈ",
    "1234567 3.14 10% $5",
    "tabs\tand\nnew lines\r\n",
    "",
    "   ",
    "ſtrange 'ſ",
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ    0123456789.,;:!?'\"&-_/()",
    "äöüßéèàçñøåčšžÄÖÜÉŁ'’ ",
    "αβγδεζηθλμπσφψω абвгдежзийклмнопрстуфхцчшщьэюя ",
    "日本語中文漢字ひらがなカタカナ 한국어 ",
    "😀🎉🐈❤️✨👍🏽 a",
]
TEXTS = ["a photo of a dog", "a red dog on a mat", "the cat sat on the mat", "Zwölf Boxkämpfer", "a photo of a cat"] * 3


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer()


@pytest.fixture(scope="module")
def theirs():
    return SimpleTokenizer()


def random_texts(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        letters = "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(1, 60)))
        yield rng.choice([letters, html.escape(letters), " ".join(letters.split())])


def assert_equal_to(theirs, ours, texts):
    expected = theirs(texts)
    ids = ours(texts)
    assert ids.dtype == torch.int64
    padded = torch.zeros_like(expected)
    padded[:, : ids.shape[1]] = ids
    wrong = (padded != expected).any(1).nonzero().flatten().tolist()
    assert [texts[n] for n in wrong] == []


def test_clips_ids_are_open_clips_on_prompts_and_odd_texts(clip, theirs):
    prompts = [t.replace("{}", n) for t in load_templates("clip80") for n in ("tench", "T-shirt", "St. Bernard (dog)")]
    assert_equal_to(theirs, clip, prompts + HAND)


def test_clips_ids_are_open_clips_on_random_texts_of_many_scripts(clip, theirs):
    assert_equal_to(theirs, clip, list(random_texts(3000)))


def test_what_is_too_long_is_cut_and_keeps_its_end(clip, theirs):
    long = ["a dog " * 100, "ok"]
    assert_equal_to(theirs, clip, long)
    ids = clip(long)
    assert ids.shape == (2, 77)
    assert ids[0, -1] == clip.eot_id == 49407
    assert clip.cuts([*long, "short"]) == 1
    short = clip_tokenizer(8)(long)
    assert short.shape == (2, 8)
    assert short[0, -1] == 49407


def test_a_batch_is_padded_to_its_own_longest(clip):
    ids = clip(["dog", "a dog"])
    assert ids.tolist() == [[49406, 1929, 49407, 0], [49406, 320, 1929, 49407]]


@pytest.mark.parametrize("injected", ["cut <end_of_text> here", "<end_of_text>", "x <start_of_text>y", "<|endoftext|>"])
def test_special_tokens_inside_a_caption_stay_text(clip, injected):
    """Deviates from open_clip on purpose: a caption must not move its own pooling."""
    ids = clip([injected])[0].tolist()
    assert ids.count(49407) == 1
    assert ids[-1] == 49407
    assert ids.count(49406) == 1


def test_the_same_texts_give_the_same_fitted_tokenizer_in_a_fresh_process(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from unicl_cli.data.tokenizers import corpus_tokenizer\n"
        "corpus_tokenizer(json.loads(sys.argv[1]), 16).save(Path(sys.argv[2]))"
    )
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    corpus_tokenizer(TEXTS, 16).save(here)
    env = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "PATH": ""}
    subprocess.run([sys.executable, "-c", code, json.dumps(TEXTS), str(there)], check=True, env=env)
    assert here.read_bytes() == there.read_bytes()


def test_a_fitted_tokenizer_survives_its_file_and_a_pickle(tmp_path):
    fitted = corpus_tokenizer(TEXTS, 12)
    fitted.save(tmp_path / "tokenizer.json")
    texts = [*TEXTS, "never seen: Ω 😀", ""]
    expected = fitted(texts)
    for other in (load_tokenizer(tmp_path / "tokenizer.json", 12), pickle.loads(pickle.dumps(fitted))):
        assert torch.equal(other(texts), expected)
        facts = [(t.vocab_size, t.eot_id, t.pad_id, t.context_length) for t in (fitted, other)]
        assert facts[0] == facts[1]


def test_a_fitted_tokenizer_knows_every_byte_and_ignores_case():
    fitted = corpus_tokenizer(TEXTS, 32)
    assert torch.equal(fitted(["A DOG"]), fitted(["a dog"]))
    ids = fitted(["Ω😀"])[0].tolist()
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 9), "a space and six bytes between the two ends"
    assert len(set(ids)) == 9
    assert fitted.eot_id == 2
    assert fitted.pad_id == 0


def test_a_fitted_tokenizer_lets_no_caption_end_itself():
    fitted = corpus_tokenizer(TEXTS, 64)
    for tokenizer in (fitted, pickle.loads(pickle.dumps(fitted))):
        ids = tokenizer(["a <end_of_text> b <pad> c <start_of_text>"])[0].tolist()
        assert (ids.count(1), ids.count(2), ids.count(0)) == (1, 1, 0)


def test_clips_tokenizer_survives_its_file(tmp_path, clip):
    clip.save(tmp_path / "tokenizer.json")
    back = load_tokenizer(tmp_path / "tokenizer.json", 77, clean=True)
    assert torch.equal(back(HAND), clip(HAND))
    assert (back.eot_id, back.pad_id, back.vocab_size) == (49407, 0, 49408)


def test_one_token_a_class():
    classes = class_tokenizer(["zero", "T-shirt & top", "ünï"])
    assert classes(["ünï", "zero"]).tolist() == [[2], [0]]
    assert (classes.vocab_size, classes.context_length) == (3, 1)
    assert pickle.loads(pickle.dumps(classes))(["T-shirt & top"]).tolist() == [[1]]


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(UniclError, match="the tokenizer has no token for 'four'") as caught:
        class_tokenizer(["zero", "one"])(["zero", "four"])
    assert "own class names" in caught.value.hint


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(UniclError, match="two classes are both called 'crane'"):
        class_tokenizer(["crane", "dog", "crane"])


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UniclError, match=r"tokenizer\.json: missing, or not a tokenizer.json"):
        load_tokenizer(file, 77)


def test_texts_that_come_again_have_the_same_ids_and_are_not_kept_without_end(clip, monkeypatch):
    monkeypatch.setattr("unicl_cli.data.tokenizers.REMEMBERED", 40)
    texts = list(dict.fromkeys(random_texts(300, seed=4)))
    alone, other = {}, clip_tokenizer()
    for text in texts[:60]:
        other._seen.clear()
        alone[text] = other([text])[0].tolist()
    rng = random.Random(0)
    for _ in range(30):
        batch = rng.choices(texts[:60], k=25) + rng.sample(texts, 10)
        rows = clip(batch).tolist()
        for text, row in zip(batch[:25], rows, strict=False):
            assert row[: len(alone[text])] == alone[text]
            assert set(row[len(alone[text]) :]) <= {clip.pad_id}
        assert len(clip._seen) <= 40
    assert len(pickle.loads(pickle.dumps(clip))._seen) == 0


@pytest.mark.parametrize("text", ["a red circle, zwölf große Äpfel!", "", "don't  stop", "안녕 🏳️‍🌈"])
def test_words_of_a_text_are_decoded_into_it(text):
    plain = " ".join(text.lower().split())
    for tokenizer, exact in ((corpus_tokenizer([text] * 3, 64), True), (clip_tokenizer(), False)):
        ids = tokenizer([text])[0].tolist()[1:-1]
        (found,) = tokenizer.decode([ids])
        if exact:
            assert " ".join(found.split()) == plain
        else:  # CLIP puts a space after each word and sign
            assert found.replace(" ", "") == plain.replace(" ", "")
    assert class_tokenizer(["a b", "c"]).decode([[0], [1]]) == ["a b", "c"]


def test_a_file_decodes_as_it_says(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "dogs": 3}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "plain.json"))
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "joined.json"))
    assert load_tokenizer(tmp_path / "plain.json", 8).decode([[1, 2, 3]]) == ["play ##ing dogs"]
    assert load_tokenizer(tmp_path / "joined.json", 8).decode([[1, 2, 3]]) == ["playing dogs"]
