"""A tokenizer as open_clip reads it: CLIP's own without a file, any other through the package transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from unicl_cli.data.tokenizers import PaddedTokenizer, TextTokenizer, clip_tokenizer
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import write_atomic
from unicl_cli.tower_contracts import Tokenizer

HERE = "."
"""The name of a tokenizer that lies beside the model; open_clip asks the hub for any name unless it has a folder."""


def describe_tokenizer(tokenizer: Tokenizer, repo: str | None) -> dict[str, Any]:
    """Return the keys of text_cfg that lead open_clip to the tokenizer; ``repo`` is its place on the hub.

    UniclError for one that open_clip cannot have.
    """
    if isinstance(tokenizer, PaddedTokenizer):  # of a model of open_clip, whose configuration has them
        return {"hf_tokenizer_name": repo or HERE} if hasattr(tokenizer.inner, "save_pretrained") else {}
    if not isinstance(tokenizer, TextTokenizer) or tokenizer.known is not None:
        raise UniclError("open_clip has no tokenizer like its own", "export a model with the tokenizer clip or corpus")
    if is_clips(tokenizer):
        return {}
    if any(row[row != tokenizer.pad_id][-1:].tolist() != [tokenizer.eot_id] for row in tokenizer(["a", "a photo"])):
        raise UniclError(
            "its tokenizer does not end a text with the token at which the text tower is read",
            "train with the tokenizer clip or corpus, or with a file that ends texts with </s>, [SEP] or <eos>",
        )
    if importlib.util.find_spec("transformers") is None:
        raise UniclError("open_clip reads its tokenizer with the package transformers", "run pip install transformers")
    words = {"clean": "lower"} if tokenizer.clean else {}
    return {"hf_tokenizer_name": repo or HERE, "tokenizer_kwargs": words}


def is_clips(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is CLIP's."""
    if not isinstance(tokenizer, TextTokenizer) or not tokenizer.clean:
        return False
    return tokenizer.library.get_vocab() == clip_tokenizer().library.get_vocab()


def save_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write the files of a tokenizer that is not CLIP's."""
    if isinstance(tokenizer, PaddedTokenizer):
        if hasattr(tokenizer.inner, "save_pretrained"):
            tokenizer.inner.save_pretrained(folder)
    elif isinstance(tokenizer, TextTokenizer) and not is_clips(tokenizer):
        tokenizer.save(folder / "tokenizer.json")
        facts = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": tokenizer.context_length,
            "pad_token": tokenizer.library.id_to_token(tokenizer.pad_id),
            "eos_token": tokenizer.library.id_to_token(tokenizer.eot_id),
            "clean_up_tokenization_spaces": False,
        }
        write_atomic(folder / "tokenizer_config.json", json.dumps(facts, indent=2) + "\n")
