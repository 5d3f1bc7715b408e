"""BERT (NAACL 2019) with its word predictions, new or from a folder of transformers' layout."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unicl_bert.layers import EPS, Layer, Prediction
from unicl_cli.api import Tokenizer, TowerTraits, UniclError, load_tokenizer, parse_json, read_regular, read_tensors

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MOST_CONFIG = 10_000_000
"""The largest configuration, in bytes."""


NAMES = (
    (r"^words\.", "bert.embeddings.word_embeddings."),
    (r"^places\.", "bert.embeddings.position_embeddings."),
    (r"^kinds\.", "bert.embeddings.token_type_embeddings."),
    (r"^norm\.", "bert.embeddings.LayerNorm."),
    (r"^units\.(\d+)\.attention\.(query|key|value)", r"bert.encoder.layer.\1.attention.self.\2"),
    (r"^units\.(\d+)\.attention\.out", r"bert.encoder.layer.\1.attention.output.dense"),
    (r"^units\.(\d+)\.attention\.norm", r"bert.encoder.layer.\1.attention.output.LayerNorm"),
    (r"^units\.(\d+)\.feed\.up", r"bert.encoder.layer.\1.intermediate.dense"),
    (r"^units\.(\d+)\.feed\.down", r"bert.encoder.layer.\1.output.dense"),
    (r"^units\.(\d+)\.feed\.norm", r"bert.encoder.layer.\1.output.LayerNorm"),
    (r"^head\.transform", "cls.predictions.transform.dense"),
    (r"^head\.norm", "cls.predictions.transform.LayerNorm"),
    (r"^bias$", "cls.predictions.bias"),
)
"""Our names -> those of `BertForPreTraining`."""
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "max_position_embeddings",
)
"""The names in `config.json` of the fields of `Size`."""


class Size(NamedTuple):
    """The numbers of a text stream; `<mask>` is a row of the table of ``vocab_size`` words."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int


class Special(NamedTuple):
    """The ids of tokens that stand for no word."""

    pad: int
    end: int
    mask: int


class Bert(nn.Module):
    """int64 (U, L) -> (U, width), the state of the first token. Words predict themselves through their own table."""

    def __init__(self, size: Size, special: Special, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.size, self.special, self.width = size, special, size.width
        self.traits = TowerTraits(
            tokenizer=tokenizer, pad_id=special.pad, context_length=size.positions, trim_safe=True
        )
        self.words, self.places = nn.Embedding(size.vocab_size, size.width), nn.Embedding(size.positions, size.width)
        self.kinds = nn.Embedding(2, size.width)
        self.norm, self.head = nn.LayerNorm(size.width, EPS), Prediction(size.width)
        self.bias = nn.Parameter(torch.zeros(size.vocab_size))
        self.units = nn.ModuleList(Layer(size.width, size.heads, size.hidden) for _ in range(size.layers))
        self.apply(start_small)

    def there(self, tokens: Tensor) -> Tensor:
        """Return bool (U, L): True up to the first end-of-text token. (CLIP's padding is also a word.)"""
        ends = tokens == self.special.end
        return ends.cumsum(1) - ends.long() == 0

    def encode(self, tokens: Tensor, there: Tensor, kinds: Tensor | None = None, layers: int | None = None) -> Tensor:
        """Map int64 (U, L) to the states (U, L, width) after the first ``layers`` layers; None means all.

        ``kinds`` int64 (U, L) are the segments of a sentence pair, 0 and 1; None means 0.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        kinds = torch.zeros_like(tokens) if kinds is None else kinds
        x = self.norm(self.words(tokens) + self.places(places) + self.kinds(kinds))
        for layer in self.units[:layers]:
            x = layer(x, there)
        return x

    def predict(self, states: Tensor) -> Tensor:
        """Map (…, width) to logits of words, (…, vocab_size)."""
        return nn.functional.linear(self.head(states), self.words.weight, self.bias)

    def tokens(self, tokens: Tensor) -> Tensor:
        return self.encode(tokens, self.there(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens)[:, 0]


class StoredBert(Bert):
    """A text stream from a folder. It keeps the configuration and tokenizer of that folder in the run."""

    def __init__(self, folder: Path, length: int) -> None:
        self.config = read_config(folder)
        tokenizer = load_tokenizer(folder / TOKENIZER, length)
        size = size_of(self.config, folder)
        mask = mask_of(tokenizer)
        if max(mask + 1, tokenizer.vocab_size) > size.vocab_size or length > size.positions:
            raise UniclError(
                f"{folder}: its table has {size.vocab_size} words and {size.positions} positions, its tokenizer and "
                f"length need {max(mask + 1, tokenizer.vocab_size)} and {length}",
                "use the tokenizer.json of this model; lower model.text.length",
            )
        super().__init__(size, Special(tokenizer.pad_id, tokenizer.eot_id, mask), tokenizer)
        self.tokenizer = tokenizer

    def store(self, folder: Path) -> None:
        """Write configuration and tokenizer, so that the run loads without the first folder."""
        (folder / CONFIG).write_text(json.dumps(self.config), encoding="utf-8")
        self.tokenizer.save(folder / TOKENIZER)


def start_small(module: nn.Module) -> None:
    """Draw weights as BERT does: normal with standard deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and cast("Tensor | None", module.bias) is not None:
        nn.init.zeros_(module.bias)


def mask_of(tokenizer: Any) -> int:
    """Return the id of `[MASK]`; a tokenizer without one gets the id behind its last word."""
    found = tokenizer.library.token_to_id("[MASK]")
    return tokenizer.vocab_size if found is None else found


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a BERT; UniclError if there is none."""
    hint = "name a folder with config.json, model.safetensors and tokenizer.json of a BERT (`unicl vilbert text`)"
    try:
        config = parse_json(read_regular(folder / CONFIG, MOST_CONFIG))
    except (OSError, ValueError) as error:
        raise UniclError(f"{folder / CONFIG}: missing or damaged", hint) from error
    if not isinstance(config, dict) or config.get("model_type") != "bert":
        raise UniclError(f"{folder / CONFIG}: not the configuration of a BERT", hint)
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise UniclError(f"{folder / CONFIG}: another activation or other positions than BERT's", hint)
    return config


def size_of(config: Mapping[str, Any], folder: Path) -> Size:
    """Return the numbers of a configuration; UniclError if one is missing or not a positive integer."""
    values: list[Any] = [config.get(name) for name in SIZES]
    if not all(type(value) is int and value > 0 for value in values):
        raise UniclError(f"{folder / CONFIG}: a size is missing or not a positive integer", "use another copy of it")
    return Size(*values)


def their_name(name: str) -> str:
    """Return the name that transformers gives a tensor of ours."""
    for pattern, theirs in NAMES:
        name, count = re.subn(pattern, theirs, name)
        if count:
            return name
    raise ValueError(f"{name} has no name in transformers' layout")


def load_bert(model: Bert, folder: Path) -> None:
    """Load the weights of a folder: ours, a `BertForPreTraining`, or an encoder alone without word predictions.

    UniclError if a tensor of the encoder is missing or has another shape.
    """
    found = {old_name(name): value for name, value in read_tensors(folder / WEIGHTS).items()}
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            name = their_name(own)
            value = found.get(name)
            if value is None and name.startswith("cls."):
                continue
            if value is None or value.shape != parameter.shape:
                shown = (
                    "is missing" if value is None else f"has shape {tuple(value.shape)}, not {tuple(parameter.shape)}"
                )
                raise UniclError(f"{folder / WEIGHTS}: {name} {shown}", "use weights and config.json of one model")
            parameter.copy_(value)


def old_name(name: str) -> str:
    """Return the name of a tensor in today's layout: with the prefix, and norms with weight and bias."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def save_bert(folder: Path, model: Bert, tokenizer: Any, more: Mapping[str, Tensor]) -> None:
    """Write a text stream as transformers' `BertForPreTraining`; ``more`` are tensors under its names."""
    tensors = {their_name(name): value.detach().contiguous() for name, value in model.named_parameters()}
    keys = {n.replace("weight", "bias"): x.new_zeros(len(x)) for n, x in tensors.items() if ".key." in n}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **keys, **more}, folder / WEIGHTS, {"format": "pt"})
    config = {"model_type": "bert", "architectures": ["BertForPreTraining"], "pad_token_id": model.special.pad}
    config |= dict(zip(SIZES, model.size, strict=True))
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    tokenizer.save(folder / TOKENIZER)
