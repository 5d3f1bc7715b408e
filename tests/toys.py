"""Small real parts that several test files share: a model to ask, a command to prepare with."""

import io
import json
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from unicl_cli.build.load import Loaded
from unicl_cli.cli import main
from unicl_cli.contracts import ClassName, Features
from unicl_cli.core.loop import Step
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.tokenizers import corpus_tokenizer
from unicl_cli.data.transforms import EvalTransform
from unicl_cli.losses.unicl import UniCL

PLAIN = SimpleNamespace(autocast=nullcontext)


class Toy(nn.Module):
    """A random linear look at small images, a mean of random word vectors."""

    embed_dim = image_width = 16

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.see, self.read = nn.Linear(3 * 8 * 8, 16), nn.Embedding(vocab_size, 16)

    def encode_image(self, images):
        pooled = self.see(images.float().flatten(1) / 255)
        return Features(pooled, F.normalize(pooled, dim=1))

    def encode_text(self, tokens):
        pooled = (self.read(tokens) * (tokens != 0)[..., None]).sum(1)
        return Features(pooled, F.normalize(pooled, dim=1))

    def scale(self, name="text"):
        del name
        return torch.tensor(14.0)


def toy(loss: nn.Module | None = None, classes: tuple[str, ...] = ()) -> Loaded:
    tokenizer = corpus_tokenizer(["a photo of a cat dog bird snow leopard"], 16)
    step = Step(Toy(tokenizer.vocab_size), loss or UniCL()).eval()
    own = tuple(ClassName(name, (name,)) for name in classes)
    return Loaded("toy", step, tokenizer, EvalTransform((8, 8)), own, ("a photo of a {}.", "{}"), ())


def noise(seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(out, "PNG")
    return out.getvalue()


def cosines(loaded, prompts: list[list[str]], seed: int = 0) -> torch.Tensor:
    """By hand: unit vectors of the prompts, their mean, its unit vector."""
    model: Toy = loaded.step.model
    vectors = [F.normalize(model.encode_text(loaded.tokenizer(own)).embed.mean(0), dim=0) for own in prompts]
    return (model.encode_image(loaded.transform(noise(seed))[None]).embed @ torch.stack(vectors).T)[0].detach()


def filled(loaded, *names: str) -> list[list[str]]:
    return [[fill_template(template, name) for template in loaded.templates] for name in names]


def put(root, files):
    """Writes ``files`` (path: bytes) below ``root``."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def prepared(capsys, *argv, code=0):
    """The JSON of a `prepare` run, and what it said on stderr."""
    assert main(["prepare", *map(str, argv), "--json"]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if out else None), err


def rows_of(corpus, split="train", kind="labels"):
    """The samples of a corpus by key."""
    table = open_corpus(corpus).table(split, kind)
    return {sample.key: sample for sample in map(table.read, range(len(table)))}
