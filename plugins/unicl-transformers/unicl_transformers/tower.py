"""A text encoder of transformers as text tower: configuration, weights, tokenizer, one vector per text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING, AutoConfig, AutoTokenizer

from unicl_cli.api import TowerTraits, UniclError

UNMASKED = ("siglip_text_model", "siglip2_text_model")
"""Models trained without a mask: every text is padded to the full length, and its padding is read."""
POOLED = ("clip_text_model", *UNMASKED)
"""Models trained with their own pooling."""


class Parts(NamedTuple):
    """The parts of one model on the hub or in a directory."""

    model: nn.Module
    tokenizer: Any
    config: Any
    dropout: float


def load(model: str, *, pretrained: bool, layers: int | None, dropout: float, stored: Path | None) -> Parts:
    """Load from ``stored`` if the run keeps a copy of configuration and tokenizer there, else from ``model``."""
    kept = stored is not None and (stored / "config.json").is_file()
    if not kept and model.startswith(("/", ".", "~")) and not Path(model).expanduser().is_dir():
        raise UniclError(f"transformers: {model}: no such directory", "use a directory, or ORG/NAME on the hub")
    source = str(stored) if kept else str(Path(model).expanduser())
    transformers.logging.set_verbosity_error()  # missing weights are an error here; other messages do not matter
    transformers.logging.disable_progress_bar()
    config = _load_config(source, model)
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise UniclError(f"{model} has only {config.num_hidden_layers} layers, not {layers}", "lower `layers`")
        config.num_hidden_layers = layers
    for name, value in config.to_dict().items():
        if isinstance(value, int | float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, dropout)
    tokenizer = _load_part("tokenizer", model, AutoTokenizer.from_pretrained, source)
    form = _model_class(config, model)
    fresh = pretrained and stored is None and torch.get_default_device().type != "meta"
    network = _load_weights(form, model, source, config) if fresh else form._from_config(config, dtype=torch.float32)
    return Parts(network, tokenizer, config, dropout)


def _model_class(config: Any, model: str) -> Any:
    """Return the class of the network: an encoder alone if there is one (T5), else the model of the configuration."""
    for mapping in (MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            form = mapping[type(config)]
            break
    else:  # the halves of some pairs are not listed: SiglipTextConfig belongs to SiglipTextModel
        form = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if form is None or (config.is_encoder_decoder and form is MODEL_MAPPING.get(type(config), None)):
        raise UniclError(
            f"{model}: a {config.model_type} model is not a text encoder", "use one such as BERT, CLIP or T5"
        )
    return form


def _load_part(what: str, model: str, load: Callable[..., Any], *given: Any, **options: Any) -> Any:
    try:
        return load(*given, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UniclError(
            f"transformers cannot load the {what} of '{model}': {reason}",
            "check the name; without a network, use a local directory (`hf download ORG/NAME` on another machine)",
        ) from error


def _load_config(source: str, model: str) -> Any:
    whole = _load_part("configuration", model, AutoConfig.from_pretrained, source)
    return whole.get_text_config()  # the text half of CLIP and SigLIP


def _load_weights(form: Any, model: str, source: str, config: Any) -> nn.Module:
    load = form.from_pretrained
    network, report = _load_part(
        "weights", model, load, source, config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UniclError(
            f"{model}: the weights lack {len(missing)} tensors of its configuration, first {missing[0]}",
            "use another model, or set pretrained: false",
        )
    if any(name.startswith("pooler.") for name in report["missing_keys"]):
        network.pooler = None  # many published encoders come without one
    return network


class TransformersTokenizer:
    """Texts -> int64 (n, longest): cut to ``context_length`` with the closing token kept, padded on the right."""

    def __init__(self, library: Any, model: str, length: int) -> None:
        if library.pad_token_id is None:
            raise UniclError(f"{model}: its tokenizer has no padding token", "use a text encoder")
        library.padding_side = "right"
        end = library.eos_token_id if library.eos_token_id is not None else library.sep_token_id
        self.library, self.context_length = library, length
        self.vocab_size: int = len(library)
        self.pad_id: int = library.pad_token_id
        self.eot_id: int = self.pad_id if end is None else end
        self.closed = library("a")["input_ids"][-1] == end
        if self.pad_id == end and not self.closed:
            raise UniclError(
                f"{model}: its tokenizer pads with the end-of-text token but does not end texts with it",
                "use a text encoder",
            )

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        cut = self.library(
            list(texts), padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return cut["input_ids"]

    def cuts(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than ``context_length``."""
        return sum(len(ids) > self.context_length for ids in self.library(list(texts))["input_ids"])

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json` of the `tokenizers` library."""
        self.library.backend_tokenizer.save(str(path))


class TransformersTower(nn.Module):
    """int64 (U, L) -> (U, width). Padding is hidden from the model, so its length changes no vector."""

    def __init__(self, parts: Parts, model: str, pooling: str | None, length: int) -> None:
        super().__init__()
        config = parts.config
        self.name, self.config, self.model = model, config, parts.model
        self.width: int = config.hidden_size
        self.pooling = pooling or ("pooler" if config.model_type in POOLED else "mean")
        self.full = config.max_position_embeddings if config.model_type in UNMASKED else None
        if self.pooling != "pooler" and isinstance(getattr(self.model, "pooler", None), nn.Module):
            cast("Any", self.model).pooler = None
        limit = min(self._positions(), parts.tokenizer.model_max_length)
        if length > limit:
            raise UniclError(f"{model} reads at most {limit} tokens, not {length}", f"set length: {limit}")
        self.tokenizer = TransformersTokenizer(parts.tokenizer, model, length)
        self.pad_id = self.tokenizer.pad_id
        self.traits = TowerTraits(
            tokenizer=self.tokenizer,
            pad_id=self.pad_id,
            trim_safe=True,
            drops=parts.dropout > 0,  # attention has dropout without an nn.Dropout
        )
        if self.pooling == "eos" and not self.tokenizer.closed:
            raise UniclError(f"{model}: its tokenizer does not end texts with a token", "set pooling: mean or last")
        if self.tokenizer.vocab_size > config.vocab_size:
            raise UniclError(
                f"{model}: its tokenizer has {self.tokenizer.vocab_size} tokens, the model {config.vocab_size}",
                "use configuration and tokenizer of the same model",
            )

    def _positions(self) -> int:
        """Return the number of positions; a padding row of the position table takes the rows up to itself."""
        tables = [m for n, m in self.model.named_modules() if n.endswith("position_embeddings")]
        first = next((m for m in tables if isinstance(m, nn.Embedding)), None)
        if first is None:  # relative or rotary positions, or CLIP's table of that length
            return getattr(self.config, "max_position_embeddings", None) or 1 << 30
        return first.num_embeddings - (0 if first.padding_idx is None else first.padding_idx + 1)

    @property
    def units(self) -> Sequence[nn.Module]:
        """Return the layers, each called through its own forward."""
        count = self.config.num_hidden_layers
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        return list(lists[0]) if lists else []

    def store(self, folder: Path) -> None:
        """Write configuration and tokenizer, so that the run loads on a machine without the original model."""
        self.config.save_pretrained(folder)
        self.tokenizer.library.save_pretrained(folder)

    def there(self, tokens: Tensor) -> Tensor:
        """Return bool (U, L), False for padding. If texts end in the padding token, its first one is not padding."""
        padding = tokens == self.pad_id
        return padding.cumsum(1) - padding.int() == 0 if self.pad_id == self.tokenizer.eot_id else ~padding

    def _states(self, tokens: Tensor) -> Any:
        if self.full is None:
            return self.model(input_ids=tokens, attention_mask=self.there(tokens).long())
        return self.model(input_ids=F.pad(tokens, (0, self.full - tokens.shape[1]), value=self.pad_id))

    def tokens(self, tokens: Tensor) -> Tensor:
        """Map int64 (U, L) to the last states, (U, L, width)."""
        return self._states(tokens).last_hidden_state[:, : tokens.shape[1]]

    def forward(self, tokens: Tensor) -> Tensor:
        out = self._states(tokens)
        if self.pooling == "pooler":
            if getattr(out, "pooler_output", None) is None:
                raise UniclError(f"{self.name} has no pooler, or its weights lack it", "set pooling: mean")
            return out.pooler_output
        states = out.last_hidden_state[:, : tokens.shape[1]]
        there = self.there(tokens)
        if self.pooling == "mean":
            weights = there.to(states.dtype)[..., None]
            return (states * weights).sum(1) / weights.sum(1)
        return states[torch.arange(states.shape[0], device=states.device), self._place(tokens, there)]

    def _place(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Return int64 (U,), the column of the state that represents each text."""
        if self.pooling == "eos":
            return (tokens == self.tokenizer.eot_id).int().argmax(1)  # the first one
        return there.int().sum(1) - 1 if self.pooling == "last" else torch.zeros_like(tokens[:, 0])
