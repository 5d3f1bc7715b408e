"""Tokenizers: CLIP's BPE, a BPE fitted on the corpus, one token per class, or a file of `tokenizers`."""

import contextlib
import gzip
import html
import importlib.util
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from torch import Tensor

from unicl_cli.core.foreign import explain_foreign
from unicl_cli.data.tokenizer_files import check_tokenizer
from unicl_cli.errors import UniclError
from unicl_cli.storage import hub
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json
from unicl_cli.storage.streams import hold_stderr

START, END, PAD = "<start_of_text>", "<end_of_text>", "<pad>"
ENDS = (END, "<|endoftext|>", "</s>", "[SEP]", "<eos>")
PADS = (PAD, "[PAD]", "<|pad|>")
CORPUS_VOCABULARY = 8192
MAX_TOKENIZER_BYTES, MAX_GAP = 128_000_000, 65_536
"""The largest `tokenizer.json` (Gemma's has 34 MB), and the most ids of its range that no token needs to have."""
REMEMBERED = 65_536
"""Maximum number of texts whose ids a tokenizer keeps: about 20 MB."""
Ids = NDArray[np.int32]
CLIP_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_clean(text: str) -> str:
    """Clean a text as CLIP does before its BPE: mojibake, HTML entities, white space, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # nothing to fix in plain ASCII
        import ftfy  # comes with open_clip; imported only for texts beyond ASCII

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class TextTokenizer:
    """Texts -> int64 (n, longest) ids, cut to ``context_length`` with the end-of-text token kept, ``pad_id`` behind.

    ``foreign`` is one from a file, whose patterns may fail on a text.
    """

    def __init__(self, library: Library, context_length: int, *, clean: bool, foreign: bool = False) -> None:
        frame = library.num_special_tokens_to_add(is_pair=False)
        if context_length <= frame:
            raise UniclError(
                f"model.context_length: {context_length} leaves no room for words besides the {frame} special tokens",
                f"set model.context_length to {frame + 1} or more",
            )
        self.library, self.context_length, self.clean, self.foreign = library, context_length, clean, foreign
        vocabulary = library.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        self.eot_id = next((vocabulary[name] for name in ENDS if name in vocabulary), self.vocab_size - 1)
        self.pad_id = next((vocabulary[name] for name in PADS if name in vocabulary), 0)
        # a table of whole texts has no token for others; the library would raise a plain Exception
        table = isinstance(library.model, models.WordLevel) and library.pre_tokenizer is None
        self.known = frozenset(vocabulary) if table else None
        self.prompt_token: int | None = None
        self.marks_prompts = False
        self._seen: dict[str, Ids] = {}
        library.no_padding()
        library.enable_truncation(context_length)

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        unknown = [] if self.known is None else [text for text in texts if text not in self.known]
        if unknown:
            raise UniclError(
                f"the tokenizer has no token for '{unknown[0]}'",
                "use the model's own class names: with `tokenizer: classes` it has one vector per class and no others; "
                "in a recipe, set data.templates=none so that a prompt is the bare name, and data.mix.labels=1 for "
                "rows with labels alone",
            )
        rows = self._ids_of(texts)
        padded = np.full((len(rows), max(1, *map(len, rows))), self.pad_id, np.int64)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        return torch.from_numpy(padded)

    def _ids_of(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, from memory where possible: prompts come back in every step."""
        found = {text: self._seen.get(text) for text in texts}
        new = [text for text, ids in found.items() if ids is None]
        if new:
            if len(self._seen) + len(new) > REMEMBERED:
                self._seen.clear()
            fresh = {text: np.array(e.ids, np.int32) for text, e in zip(new, self._encode(new), strict=True)}
            self._seen |= fresh
            found |= fresh
        return [cast("Ids", found[text]) for text in texts]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}}

    def begin_prompts(self, token: int | None) -> None:
        """Begin prompts in training with ``token``, or as captions begin if it is None.

        UniclError if texts have no start token whose place it takes.
        """
        if token is not None:
            firsts = set[int]() if self.known is not None else {*self(["", "a"])[:, 0].tolist()}
            if len(firsts) != 1 or self.eot_id in firsts:
                raise UniclError(
                    "model.text.prefix: the tokenizer puts no start token before a text",
                    "use the tokenizer corpus or clip, or set model.text.prefix=null",
                )
        self.prompt_token = token

    def cuts(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than ``context_length``."""
        return sum(bool(e.overflowing) for e in self._encode(texts))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, with the special ones: at most ``context_length``."""
        return [len(e.ids) for e in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> Sequence[Encoding]:
        self.library.encode_special_tokens = True  # as plain text; neither files nor pickles keep this setting
        cleaned = [clip_clean(t) if self.clean else t for t in texts]
        with explain_encoding() if self.foreign else contextlib.nullcontext():
            return self.library.encode_batch_fast(cleaned)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Turn the ids of words, without the start and end of a text, into texts."""
        return [self._join([piece for id_ in row if (piece := self.library.id_to_token(id_))]) for row in rows]

    def _join(self, pieces: list[str]) -> str:
        if self.library.decoder is not None:
            return self.library.decoder.decode(pieces).strip()
        before: Any = self.library.pre_tokenizer
        if before is None or b"ByteLevel" not in before.__getstate__():
            return " ".join(pieces)
        text = decoders.ByteLevel().decode(pieces)
        suffix = getattr(self.library.model, "end_of_word_suffix", None)
        return (text.replace(suffix, " ") if suffix else text).strip()

    def cut_at(self, context_length: int) -> "TextTokenizer":
        """Return the same tokenizer at another length."""
        library = Library.from_str(self.library.to_str())
        return TextTokenizer(library, context_length, clean=self.clean, foreign=self.foreign)

    def save(self, path: Path) -> None:
        self.library.save(str(path))


def _add_ends(library: Library, start: int, end: int) -> Library:
    library.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    return library


@lru_cache(maxsize=4)  # `mix` and `compare` ask for it once per model, and it takes as long as a small model
def clip_tokenizer(context_length: int = 77) -> TextTokenizer:
    """Build CLIP's BPE from open_clip's merges on the `tokenizers` library: the same ids, twice as fast.

    Special tokens that are spelled out in a caption stay plain text, so that a caption cannot end itself.
    """
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1:48895]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    # GPT-2's order of the 256 byte characters: printable ones first, in code order, then the rest
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: n for n, word in enumerate(words)}
    library = Library(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    library.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    return TextTokenizer(_add_ends(library, vocabulary[START], vocabulary[END]), context_length, clean=True)


def corpus_tokenizer(texts: Iterable[str], context_length: int) -> TextTokenizer:
    """Fit a lower-cased byte-level BPE on the texts of a mix; the same texts in the same order give the same ids."""
    library = Library(models.BPE())
    library.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=CORPUS_VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return TextTokenizer(_add_ends(library, 1, 2), context_length, clean=False)


def class_tokenizer(names: Sequence[str]) -> TextTokenizer:
    """Build a tokenizer with one token per class name, its number the class: for towers that are a table of classes."""
    vocabulary: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in vocabulary:
            raise UniclError(
                f"model.tokenizer: classes: two classes are both called '{name}'",
                "rename one of them, or use another tokenizer and text tower: here each name has one vector",
            )
        vocabulary[name] = number
    return TextTokenizer(Library(models.WordLevel(vocabulary, unk_token="")), 1, clean=False)


def load_tokenizer(path: Path, context_length: int, *, clean: bool = False) -> TextTokenizer:
    """Load a `tokenizer.json` of the `tokenizers` library; ``clean`` applies CLIP's cleaning to its texts first.

    UniclError if it is missing or damaged, or could answer a text with endless work or with ids beyond its vocabulary.
    """
    try:
        data = read_regular(path, MAX_TOKENIZER_BYTES)
        check_tokenizer(parse_json(data))
        with as_value_error():
            library = Library.from_buffer(data)
            check_ids(library)
    except (OSError, ValueError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise UniclError(
            f"{path}: missing, or not a tokenizer.json: {' '.join(str(reason).split())}",
            "restore the file of a run from a copy; in a recipe, set model.tokenizer to another file, corpus or clip",
        ) from error
    return TextTokenizer(library, context_length, clean=clean, foreign=True)


@contextlib.contextmanager
def explain_encoding() -> Generator[None]:
    """Turn what the library raises for a text into UniclError."""
    try:
        with as_value_error():
            yield
    except ValueError as error:
        raise UniclError(f"the tokenizer cannot encode a text: {error}", "use another tokenizer") from error


@contextlib.contextmanager
def as_value_error() -> Generator[None]:
    """Turn what the library raises into a ValueError: plain Exceptions, and a BaseException where it panics and prints.

    It has no other word for a malformed file, a text without an unknown token, a pattern that takes too long.
    """
    try:
        with hold_stderr():
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from error


def check_ids(library: Library) -> None:
    """Raise ValueError if a tokenizer has no tokens, leaves gaps between its ids, or puts in ids that are not its own.

    A table of vectors has a row for each id up to the largest, so that one wild id would take all memory.
    """
    ids = set(library.get_vocab().values())
    if not ids or max(ids) >= 2 * len(ids) + MAX_GAP:
        raise ValueError(f"its {len(ids)} tokens have ids up to {max(ids, default=0)}")
    if not ids.issuperset(library.encode_batch_fast([""])[0].ids):
        raise ValueError("its post_processor adds ids that are not in the vocabulary")


class PaddedTokenizer:
    """A tokenizer of open_clip behind our interface: int64 (n, context_length), padded to the whole context."""

    def __init__(self, inner: Any, context_length: int, vocab_size: int, pad_id: int) -> None:
        self.inner, self.context_length, self.vocab_size, self.pad_id = inner, context_length, vocab_size, pad_id

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        with explain_encoding():
            return self.inner(list(texts), context_length=self.context_length)

    def cuts(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than ``context_length``."""
        with explain_encoding():
            longer = self.inner(list(texts), context_length=self.context_length + 1)
        return int((longer[:, -1] != self.pad_id).sum())


def open_clip_tokenizer(name: str, text: Mapping[str, Any], folder: Path | None) -> TextTokenizer | PaddedTokenizer:
    """Return open_clip's tokenizer of a model with text_cfg ``text``; of a local model, from its ``folder``.

    For CLIP's own it is ours, with equal ids; for one of transformers it is open_clip's class around it.
    """
    length = text.get("context_length", 77)
    options = dict(text.get("tokenizer_kwargs") or {})
    hub_name = text.get("hf_tokenizer_name")
    if not hub_name and options in ({}, {"clean": "lower"}):
        return clip_tokenizer(length)
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if not hub_name:
        with explain_foreign(f"model {name}: text_cfg.tokenizer_kwargs", "fix its open_clip_config.json"):
            simple = SimpleTokenizer(context_length=length, **options)
        return PaddedTokenizer(simple, length, simple.vocab_size, 0)
    if importlib.util.find_spec("transformers") is None:
        raise UniclError(f"model {name}: its tokenizer needs transformers", "install it: pip install transformers")
    place = hub.tokenizer_folder(hub_name) if folder is None else folder
    what = f"model {name}: the tokenizer in {place} cannot be read"
    with explain_foreign(what, "put tokenizer.json and tokenizer_config.json into that folder"):
        inner = HFTokenizer(str(place), length, tokenizer_mode=text.get("tokenizer_mode"), **options)
    pad = inner.tokenizer.pad_token_id
    return PaddedTokenizer(inner, length, len(inner.tokenizer), 0 if pad is None else pad)
