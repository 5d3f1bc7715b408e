"""The text stream against transformers' BertForPreTraining; next-sentence statistics; folders of weights."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from unicl_bert import build_bert_folder
from unicl_bert.bert import CONFIG, WEIGHTS, Bert, Size, Special, load_bert, save_bert
from unicl_bert.pretraining import TextStage, draw_pair, join_pairs, read_documents

from unicl_cli.api import UniclError, corpus_tokenizer
from unicl_cli.cli import main

SENTENCES = [f"{a} {b} sits on the {c} ." for a in ("a", "the") for b in ("cat", "dog", "hen") for c in ("mat", "hill")]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Six documents of four sentences."""
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join("\n".join(SENTENCES[n : n + 4]) for n in range(6)), encoding="utf-8")
    return path


@pytest.fixture
def oracle(tmp_path: Path):
    """A `BertForPreTraining` with random weights, and a folder with its files and a tokenizer."""
    from transformers import BertConfig, BertForPreTraining

    tokenizer = corpus_tokenizer(SENTENCES, 24)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size + 1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    model = BertForPreTraining(config).double().eval()
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "bert"
    model.float().save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return model.double(), folder, tokenizer


def test_the_loss_is_transformers_and_gradients_reach_everything(oracle):
    theirs, folder, tokenizer = oracle
    ours = build_bert_folder(folder=str(folder), length=24, stored=None).double()
    rows = [row[1:-1] for row in (tokenizer([text]).tolist()[0] for text in SENTENCES)]
    pairs = [(rows[n], rows[n + 5], n % 2) for n in range(6)]
    batch = join_pairs(pairs, (1, tokenizer.eot_id, tokenizer.pad_id), 17, range(6))
    stage = TextStage(ours, share=0.4).double()
    with torch.no_grad():
        stage.pool.load_state_dict(theirs.bert.pooler.dense.state_dict())
        stage.next.load_state_dict(theirs.cls.seq_relationship.state_dict())
    out = stage(batch)
    from unicl_bert.masking import mask_words

    special = (ours.special.mask, ours.size.vocab_size)
    hidden = mask_words(batch.tokens, batch.words, batch.seeds, 0.4, special)
    labels = batch.tokens.masked_fill(~hidden.chosen, -100)
    expected = theirs(
        input_ids=hidden.tokens, attention_mask=batch.there.long(), token_type_ids=batch.kinds, labels=labels,
        next_sentence_label=batch.is_random,
    )  # fmt: skip
    torch.testing.assert_close(out["loss"], expected.loss)
    states = ours.encode(hidden.tokens, batch.there, batch.kinds)
    torch.testing.assert_close(
        ours.predict(states)[batch.there], expected.prediction_logits[batch.there], rtol=1e-6, atol=1e-6
    )
    swapped = ours.encode(hidden.tokens, batch.there, 1 - batch.kinds)
    assert not torch.allclose(swapped[:, 0], states[:, 0]), "the segments are seen"
    out["loss"].backward()
    assert [name for name, p in stage.named_parameters() if p.grad is None] == []
    nothing = stage(batch._replace(words=torch.zeros_like(batch.words)))
    assert nothing["words"] == 0
    assert nothing["loss"].isfinite()


def test_what_is_saved_is_read_by_transformers_and_by_us(oracle, tmp_path: Path):
    from transformers import BertForPreTraining

    theirs, folder, tokenizer = oracle
    ours = build_bert_folder(folder=str(folder), length=24, stored=None)
    head = {f"bert.pooler.dense.{n}": x.float() for n, x in theirs.bert.pooler.dense.state_dict().items()}
    head |= {f"cls.seq_relationship.{n}": x.float() for n, x in theirs.cls.seq_relationship.state_dict().items()}
    save_bert(tmp_path / "saved", ours, tokenizer, head)
    back = BertForPreTraining.from_pretrained(tmp_path / "saved").double().eval()
    tokens = tokenizer(SENTENCES)
    mask = ours.there(tokens).long()
    torch.testing.assert_close(
        back(tokens, mask).prediction_logits, theirs(tokens, mask).prediction_logits, rtol=1e-5, atol=1e-5
    )
    again = build_bert_folder(folder=str(tmp_path / "saved"), length=24, stored=None)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    (tmp_path / "run").mkdir()
    ours.store(tmp_path / "run")
    stored = build_bert_folder(folder="gone", length=24, stored=tmp_path / "run")
    assert stored.size == ours.size
    assert torch.equal(stored.traits.tokenizer(["a cat"]), tokenizer(["a cat"]))


def test_padding_changes_no_state():
    torch.manual_seed(0)
    model = Bert(Size(31, 16, 2, 2, 32, 12), Special(0, 2, 30))
    tokens = torch.tensor([[1, 5, 6, 2]])
    longer = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 9, 2]])
    torch.testing.assert_close(model(longer)[:1], model(tokens))
    torch.testing.assert_close(model.tokens(longer)[:1, :4], model.tokens(tokens))


def test_half_of_the_pairs_are_random_and_no_next_one_crosses_documents():
    documents = [[(d, n) for n in range(2 + d % 3)] for d in range(7)]
    drawn = [draw_pair(documents, 0, draw) for draw in range(5000)]
    assert sum(y for *_, y in drawn) / 5000 == pytest.approx(0.5, abs=0.02)
    for (document, number), second, y in drawn:
        if y:
            assert second[0] != document
        else:
            assert second == (document, number + 1)
    assert drawn[:50] == [draw_pair(documents, 0, draw) for draw in range(50)]
    assert drawn[:50] != [draw_pair(documents, 1, draw) for draw in range(50)]
    alike = [[(1,), (2,)], [(2,), (2,)]]
    assert all(
        second != (2,) or first == (2,) or y == 0 for first, second, y in (draw_pair(alike, 0, n) for n in range(200))
    )


@pytest.mark.parametrize(
    ("text", "words"), [("one\n\ntwo\n", "0 documents of two"), ("a\nb\n", "1 documents of two"), ("", "0 documents")]
)
def test_a_file_without_documents_is_refused(text: str, words: str, tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(UniclError, match=words):
        read_documents(path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hidden_size", 0, "a size is missing"),
        ("model_type", "gpt2", "not the configuration of a BERT"),
        ("num_hidden_layers", 3, r"layer\.2.* is missing"),
        ("intermediate_size", 64, "has shape"),
        ("vocab_size", 5, "its table has 5 words"),
        ("hidden_act", "relu", "another activation"),
    ],
)
def test_a_folder_of_another_model_is_refused(oracle, name: str, change: object, words: str):
    _, folder, _ = oracle
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, name: change}))
    with pytest.raises(UniclError, match=words):
        build_bert_folder(folder=str(folder), length=24, stored=None)


def test_an_encoder_without_heads_loads_under_old_names(oracle):
    from safetensors.torch import load_file, save_file

    _, folder, _ = oracle
    whole = build_bert_folder(folder=str(folder), length=24, stored=None)
    tensors = load_file(folder / WEIGHTS)
    old = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): x
        for name, x in tensors.items()
        if name.startswith("bert.")
    }
    save_file(old, folder / WEIGHTS)
    part = Bert(whole.size, whole.special)
    load_bert(part, folder)
    tokens = torch.randint(3, 20, (2, 6))
    torch.testing.assert_close(part.tokens(tokens), whole.tokens(tokens))


def test_the_command_trains_a_stream_that_a_recipe_can_start_from(texts: Path, tmp_path: Path, capsys):
    out = tmp_path / "stream"
    sizes = ("--width", "16", "--layers", "2", "--heads", "2", "--hidden", "32", "--length", "24")
    assert main(["vilbert", "text", str(texts), "-o", str(out), "--steps", "40", "--batch", "16", *sizes]) == 0
    assert "next sentence" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[-1]["words"] < lines[0]["words"]
    model = build_bert_folder(folder=str(out), length=24, stored=None)
    assert model.width == 16
    assert F.cosine_similarity(model(model.traits.tokenizer(["a cat", "the dog"])), torch.ones(16)).shape == (2,)
    assert main(["vilbert", "text", str(texts), "-o", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_sentence_pairs_are_framed_and_the_longer_is_cut():
    pairs = [([5, 6], [7], 0), ([5] * 9, [6, 7, 8], 1)]
    made = join_pairs(pairs, (1, 2, 0), 9, [3, 4])
    assert made.tokens.tolist() == [[1, 5, 6, 2, 7, 2, 0, 0, 0], [1, 5, 5, 5, 2, 6, 7, 8, 2]]
    assert made.kinds.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 1]]
    assert made.words.tolist() == [[x in (5, 6, 7, 8) for x in row] for row in made.tokens.tolist()]
    assert made.there.sum(1).tolist() == [6, 9]
