"""`unicl search`: terms, sums of unit vectors, items of each modality, mistakes in one line; and the command."""

import json
from pathlib import Path

import pytest
import torch
from hearing import hearing
from torch.nn import functional as F
from toys import noise, prepared
from unicl_odd.stripes import profile_of

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.search import Wanted, search, split_queries


@pytest.fixture
def corpus(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared(capsys, "--captions", "odd-stripes?rows=13&profile=true", "-o", "c", "--workers", 1)
    (tmp_path / "a.png").write_bytes(noise())
    (tmp_path / "a.profile").write_bytes(profile_of(4))
    return open_corpus("c")


def ask(*queries, of="image", top_k=3, split="test"):
    document = search(Encoder(hearing()), queries, Wanted("c", split, of, top_k), batch=4)
    return document, [answer["results"] for answer in document["queries"]]


def vectors(corpus, of):
    """The unit vectors of all items by hand, by key or text."""
    loaded, table = hearing(), corpus.table("test", "captions")
    model, found = loaded.step.model, {}
    for row in range(len(table)):
        sample = table.read(row, media=True)
        if of == "image":
            found[sample.key] = model.encode_image(loaded.transform(sample.image)[None])
        elif of == "text":
            found |= {text: model.encode_text(loaded.tokenizer([text])) for text in sample.texts}
        elif of in sample.media:
            found[sample.key] = model.encode_extra(of, model.media[0].read(sample.media[of])[None])
    return {name: features.embed[0].detach() for name, features in found.items()}


@pytest.mark.parametrize("of", ["image", "text", "profile"])
def test_the_nearest_items_are_those_of_all_cosines(corpus, of):
    model = hearing()
    x = model.step.model.encode_extra("profile", model.step.model.media[0].read(profile_of(4))[None]).embed[0].detach()
    expected = {name: float(x @ vector) for name, vector in vectors(corpus, of).items()}
    document, (results,) = ask(["a.profile"], of=of)
    assert document["n"] == len(expected)
    assert [item["cosine"] for item in results] == pytest.approx(sorted(expected.values(), reverse=True)[:3], abs=1e-5)
    for item in results:
        name = item["texts"][0] if of == "text" else item["key"]
        assert item["cosine"] == pytest.approx(expected[name], abs=1e-5)


def test_a_sum_is_the_unit_vector_of_the_mean_of_unit_vectors(corpus):
    model = hearing()
    image = model.step.model.encode_image(model.transform(noise())[None]).embed[0]
    text = model.step.model.encode_text(model.tokenizer(["a cat"])).embed[0]
    x = F.normalize((F.normalize(image, dim=0) + F.normalize(text, dim=0)) / 2, dim=0).detach()
    best = max(float(x @ vector) for vector in vectors(corpus, "image").values())
    document, (results, alone) = ask(["a.png", "a cat"], ["a cat"])
    assert results[0]["cosine"] == pytest.approx(best, abs=1e-5)
    assert [answer["query"] for answer in document["queries"]] == ["a.png + a cat", "a cat"]
    assert alone != results


def test_a_plus_joins_its_neighbours_and_other_neighbours_are_queries():
    assert split_queries(["a", "+", "b", "c", "d", "+", "e", "+", "f"]) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert split_queries(["a+b"]) == [["a+b"]]


@pytest.mark.parametrize("words", [["+", "a"], ["a", "+"], ["a", "+", "+", "b"], ["a", " "], [""], ["+"]])
def test_a_missing_term_is_refused(words):
    with pytest.raises(UniclError, match="QUERY: a term is missing or empty"):
        split_queries(words)


@pytest.mark.parametrize(
    ("query", "of", "message"),
    [
        ("no.png", "image", "no.png: no such file"),
        ("no.profile", "image", "no.profile: no such file"),
        ("no.wav", "image", "no.wav: no such file"),
        ("bad.profile", "image", "bad.profile: a profile of 3 bytes instead of 128"),
        ("bad.png", "image", "bad.png: not an image"),
        ("a cat", "audio", "--of audio: not a modality of the model"),
    ],
)
def test_mistakes_are_one_line(corpus, query, of, message):
    Path("bad.profile").write_bytes(b"bad")
    Path("bad.png").write_bytes(b"bad")
    with pytest.raises(UniclError) as error:
        ask([query], of=of)
    assert error.value.message.startswith(message)
    assert error.value.hint


def test_terms_that_cancel_and_a_split_without_the_kind_are_refused(corpus, tmp_path, capsys, monkeypatch):
    import unicl_cli.jobs.search as module

    monkeypatch.setattr(module, "encode_term", lambda _, term: torch.tensor([1.0 if term == "up" else -1.0, 0.0]))
    with pytest.raises(UniclError, match="up \\+ down: the terms cancel each other"):
        module.add_terms(Encoder(hearing()), ["up", "down"])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    prepared(capsys, "--captions", "odd-stripes?rows=4", "-o", "plain", "--workers", 1)
    with pytest.raises(UniclError, match="no row of split 'test' has profile"):
        search(Encoder(hearing()), [["a cat"]], Wanted("plain", "test", "profile", 3), batch=4)


def test_the_command_searches_with_a_trained_run(corpus, capsys):
    words = ["data.train=[{corpus: c}]", "eval=[]", "batch.size=12", "epochs=null", "steps=1"]
    assert main(["train", "digits-unicl", *words, "--run-dir", "run", "-q"]) == 0
    capsys.readouterr()
    assert main(["search", "vertical stripes", "a.png", "--model", "run", "--top-k", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["data"], document["split"], document["of"], document["n"]) == ("c", "test", "image", 13)
    assert [len(answer["results"]) for answer in document["queries"]] == [2, 2]
    assert main(["search", "vertical stripes", "--model", "run", "-q"]) == 0
    assert "vertical stripes" in capsys.readouterr().out
    assert main(["search", "a", "+", "--model", "run"]) == 2
    assert "QUERY: a term is missing or empty" in capsys.readouterr().err
