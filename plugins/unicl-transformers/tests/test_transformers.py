"""The tower against transformers' own models, in a run, without the original, on two processes, and refusing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf  # each model only when a test asks for it
from forked_ranks import on_ranks
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from unicl_transformers import build_transformers

from unicl_cli.api import UniclError, load_model
from unicl_cli.cli import main
from unicl_cli.testing import max_difference, recipe_of

WORDS = ["a", "photo", "of", "cat", "dog", "zero", "one", "two", "the", "digit", "thin", "wide", ",", "."]
TEXTS = ["a photo of a cat", "dog", "the digit two , thin , wide"]
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def save_tokenizer(folder: Path, *, start: str | None, end: str, pad: str, length: int = 20) -> int:
    """A word-level tokenizer that frames each text; its size."""
    special = list(dict.fromkeys(filter(None, (start, pad, end, "[UNK]"))))
    ids = {word: n for n, word in enumerate([*special, *WORDS])}
    library = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}" if start else f"$A {end}",
        special_tokens=[(token, ids[token]) for token in dict.fromkeys(filter(None, (start, end)))],
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token=pad, unk_token="[UNK]", bos_token=start, eos_token=end, cls_token=start,
        sep_token=end, model_max_length=length,
    ).save_pretrained(folder)  # fmt: skip
    return len(ids)


def bert(folder: Path):
    size = save_tokenizer(folder, start="[CLS]", end="[SEP]", pad="[PAD]")
    return hf.BertModel(hf.BertConfig(vocab_size=size, max_position_embeddings=20, pad_token_id=1, **SMALL))


def roberta(folder: Path):
    size = save_tokenizer(folder, start="<s>", end="</s>", pad="<pad>")
    config = hf.RobertaConfig(vocab_size=size, max_position_embeddings=22, pad_token_id=1, eos_token_id=2, **SMALL)
    return hf.RobertaModel(config)


def distilbert(folder: Path):
    size = save_tokenizer(folder, start="[CLS]", end="[SEP]", pad="[PAD]")
    sizes = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
    return hf.DistilBertModel(hf.DistilBertConfig(vocab_size=size, max_position_embeddings=20, pad_token_id=1, **sizes))


def t5(folder: Path):
    size = save_tokenizer(folder, start=None, end="</s>", pad="<pad>")
    sizes = {"d_model": 16, "num_layers": 3, "num_heads": 2, "d_ff": 24, "d_kv": 8}
    return hf.T5EncoderModel(hf.T5Config(vocab_size=size, pad_token_id=0, eos_token_id=1, **sizes))


def clip(folder: Path):
    """As on the hub: texts are padded with the token that ends them."""
    size = save_tokenizer(folder, start="<start>", end="<end>", pad="<end>")
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return hf.CLIPTextModel(hf.CLIPTextConfig(vocab_size=size, max_position_embeddings=20, **ends, **SMALL))


def siglip(folder: Path):
    """As on the hub: both halves, padded to the full length without a mask."""
    size = save_tokenizer(folder, start=None, end="</s>", pad="</s>")
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    text = {"vocab_size": size, "max_position_embeddings": 20, "projection_size": 16, **ends, **SMALL}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 8, "patch_size": 4}))


FAMILIES = {"bert": bert, "roberta": roberta, "distilbert": distilbert, "t5": t5, "clip": clip, "siglip": siglip}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each family, as a download leaves it."""
    root = tmp_path_factory.mktemp("published")
    for name, make in FAMILIES.items():
        torch.manual_seed(0)
        model = make(root / name)
        for parameter in model.parameters():  # biases and gains that are not all alike
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


def tower_of(folder: Path, **options: Any) -> Any:
    given = {"length": 16, "stored": None, **options}
    return build_transformers(model=str(folder), **given).eval()


def original(name: str, folder: Path) -> Any:
    """The published model's own output, each text by itself, without any padding but SigLIP's."""
    form = {
        "siglip": hf.SiglipModel,
        "clip": hf.CLIPTextModel,
        "t5": hf.T5EncoderModel,
        "roberta": hf.RobertaModel,
    }
    form |= {"bert": hf.BertModel, "distilbert": hf.DistilBertModel}
    model = form[name].from_pretrained(folder).eval()
    model = model.text_model if name == "siglip" else model
    library = hf.PreTrainedTokenizerFast.from_pretrained(folder)
    pad = {"padding": "max_length", "max_length": 20} if name == "siglip" else {}
    with torch.no_grad():
        return [
            (library(text)["input_ids"], model(torch.tensor([library(text, **pad)["input_ids"]]))) for text in TEXTS
        ]


POOLINGS = [
    *(("bert", "mean"), ("bert", "cls"), ("bert", "eos"), ("bert", "last"), ("bert", "pooler")),
    *(("roberta", "mean"), ("distilbert", "cls"), ("t5", "mean"), ("t5", "eos")),
    *(("clip", "pooler"), ("clip", "mean"), ("clip", "eos"), ("clip", "last"), ("siglip", "pooler")),
]


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_a_vector_is_what_the_published_model_makes_of_the_text_alone(published, name, pooling):
    tower = tower_of(published[name], pooling=pooling)
    with torch.no_grad():
        ours = tower(tower.tokenizer(TEXTS))
    for row, (ids, out) in zip(ours, original(name, published[name]), strict=True):
        states = out.last_hidden_state[0, : len(ids)]
        pooled = getattr(out, "pooler_output", None)
        theirs = {"mean": states.mean(0), "cls": states[0], "eos": states[-1], "last": states[-1]}
        torch.testing.assert_close(row, pooled[0] if pooling == "pooler" else theirs[pooling], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_and_neighbours_change_no_vector_and_layers_are_units(published, name):
    tower = tower_of(published[name])
    tokens = tower.tokenizer(TEXTS)
    more = torch.nn.functional.pad(tokens, (0, 3), value=tower.pad_id)
    with torch.no_grad():
        torch.testing.assert_close(tower(more), tower(tokens))
        torch.testing.assert_close(tower(tower.tokenizer(TEXTS[1:2])), tower(tokens)[1:2])
        states = tower.tokens(tokens)
    assert states.shape == (len(TEXTS), tokens.shape[1], tower.width)
    assert len(tower.units) == 3
    assert not any(m.p for m in tower.modules() if isinstance(m, torch.nn.Dropout))
    assert tower.pooling == ("pooler" if name in ("clip", "siglip") else "mean")


@pytest.mark.parametrize("name", ["bert", "t5", "clip"])
def test_fewer_layers_are_the_first_ones(published, name):
    whole, cut = tower_of(published[name]), tower_of(published[name], layers=2)
    assert len(cut.units) == 2
    for mine, other in zip(cut.units, whole.units, strict=False):
        for (key, value), (_, kept) in zip(mine.state_dict().items(), other.state_dict().items(), strict=True):
            assert torch.equal(value, kept), key


def test_the_text_half_of_a_clip_is_taken_from_the_whole(tmp_path):
    text = clip(tmp_path).config.to_dict()
    whole = hf.CLIPModel(
        hf.CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 8, "patch_size": 4})
    ).eval()
    whole.save_pretrained(tmp_path)
    tower = tower_of(tmp_path)
    tokens = tower.tokenizer(TEXTS)
    with torch.no_grad():
        theirs = whole.text_model(tokens, attention_mask=tower.there(tokens).long()).pooler_output
        torch.testing.assert_close(tower(tokens), theirs)


def test_texts_are_cut_with_their_end_kept_and_counted(published):
    tokenizer = tower_of(published["bert"], length=5).tokenizer
    assert tokenizer(["a photo of a cat", "dog"]).tolist() == [[0, 4, 5, 6, 2], [0, 8, 2, 1, 1]]
    assert tokenizer.cuts(["a photo of a cat", "dog"]) == 1
    assert (tokenizer.context_length, tokenizer.pad_id, tokenizer.eot_id, tokenizer.vocab_size) == (5, 1, 2, 18)


def test_dropout_is_off_unless_asked_for(published):
    rates = {m.p for m in tower_of(published["bert"], dropout=0.25).modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25}
    tower = tower_of(published["clip"], dropout=0.25).train()  # inside attention alone
    tokens = tower.tokenizer(["a photo", "a photo"])
    assert not torch.equal(*tower(tokens))
    assert tower.traits.drops
    assert not tower_of(published["clip"]).traits.drops


def test_without_pretrained_the_seed_makes_the_weights(published):
    def made() -> torch.Tensor:
        torch.manual_seed(5)
        return tower_of(published["bert"], pretrained=False).model.embeddings.word_embeddings.weight

    assert torch.equal(made(), made())
    assert not torch.equal(made(), tower_of(published["bert"]).model.embeddings.word_embeddings.weight)


REFUSED = [
    ({"model": "/nowhere/at/all"}, "/nowhere/at/all: no such directory"),
    ({"model": "nobody/nothing-at-all"}, "cannot load the configuration of 'nobody/nothing-at-all': We couldn't"),
    ({"layers": 9}, "has only 3 layers, not 9"),
    ({"length": 40}, "reads at most 20 tokens, not 40"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_what_cannot_be_is_one_line(published, options, reason, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = {"model": str(published["bert"]), "stored": None, "length": 16, **options}
    with pytest.raises(UniclError, match=reason) as caught:
        build_transformers(**given)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_model_that_translates_is_no_encoder(tmp_path):
    save_tokenizer(tmp_path, start="<s>", end="</s>", pad="<pad>")
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(UniclError, match="a bart model is not a text encoder"):
        tower_of(tmp_path)


def test_a_model_without_pooler_and_weights_that_lack_a_layer_are_refused(published, tmp_path):
    tower = tower_of(published["t5"], pooling="pooler")
    with pytest.raises(UniclError, match="has no pooler"):
        tower(tower.tokenizer(TEXTS))
    shutil.copytree(published["bert"], tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UniclError, match=r"the weights lack 16 tensors of its configuration, first encoder\.layer\.3"):
        tower_of(tmp_path / "deeper")


def test_naming_the_tower_in_a_recipe_loads_no_torch(published, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_of(tmp_path, text=f"{{name: transformers, model: {published['bert']}}}"))
    code = (
        "import sys; from unicl_cli.cli import main; main(['recipes', 'validate', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_heads_by_kind_need_a_tokenizer_that_marks_prompts(published, digits, tmp_path, capfd):
    text = f"{{name: transformers, model: {published['bert']}, length: 16, layers: 1}}"
    (tmp_path / "recipe.yaml").write_text(recipe_of(digits, text=text, steps=1))
    assert main(["train", str(tmp_path / "recipe.yaml"), "model.heads=kind", "--run-dir", str(tmp_path / "run")]) == 2
    assert "model.heads: the text tower's own tokenizer does not mark prompts" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_split_or_not(published, digits, tmp_path):
    text = f"{{name: transformers, model: {published['bert']}, length: 16}}"
    (tmp_path / "recipe.yaml").write_text(recipe_of(digits, text=text, steps=3))
    train = ("train", str(tmp_path / "recipe.yaml"), "-q", "--run-dir")
    assert main([*train, str(tmp_path / "one"), "--devices", "cpu:1"]) == 0
    for strategy in ("ddp", "fsdp2"):
        on_ranks(2, *train, tmp_path / strategy, f"parallel.strategy={strategy}")
        assert max_difference(tmp_path / "one", tmp_path / strategy) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5", "clip"])
def test_a_run_is_loaded_and_goes_on_without_the_original(published, digits, tmp_path, capfd, name):
    shutil.copytree(published[name], tmp_path / "original")
    text = f"{{name: transformers, model: {tmp_path / 'original'}, length: 16, layers: 2}}"
    (tmp_path / "recipe.yaml").write_text(recipe_of(digits, text=text, steps=2))
    train = ["train", str(tmp_path / "recipe.yaml"), "--devices", "cpu:1", "-q", "--run-dir"]
    assert main([*train, str(tmp_path / "run")]) == 0
    before = load_model(str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "original")
    (tmp_path / "run" / "meta.json").unlink()  # as if it had been cut after its last checkpoint
    assert main([*train, str(tmp_path / "run")]) == 0
    after = load_model(str(tmp_path / "run"))
    with torch.no_grad():
        features = [m.step.model.encode_text(m.tokenizer(TEXTS)).embed for m in (before, after)]
    torch.testing.assert_close(features[0], features[1])
    if name == "clip":
        changes = ["model.text.dropout=0.1", f"model.text.model={published[name]}"]
        assert main([*(word for word in train if word != "-q"), str(tmp_path / "dropped"), *changes]) == 0
        assert "equal texts are encoded once per row: the text tower has dropout" in capfd.readouterr().err
    if name == "bert":
        capfd.readouterr()
        assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["data"][0]["n"] > 500
