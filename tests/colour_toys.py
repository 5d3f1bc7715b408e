"""A toy model that sees colours and reads their names, and corpora of coloured images for it: every figure is known."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from unicl_cli.build.load import Loaded
from unicl_cli.contracts import Features
from unicl_cli.core.loop import Step
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.data.transforms import EvalTransform
from unicl_cli.jobs.prepare.plan.request import PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
PLAIN = SimpleNamespace(autocast=nullcontext)


class Words:
    """Word by word, 0 = padding; words beyond the context are cut."""

    def __init__(self, context_length: int = 12) -> None:
        self.context_length, self.vocab_size = context_length, 4

    def __call__(self, texts):
        ids = {colour: number for number, colour in enumerate(COLOURS, 1)}
        rows = [[ids.get(word.strip(".,"), 4) for word in text.split()][: self.context_length] for text in texts]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class Colours(nn.Module):
    """Sees the mean colour of an image and reads colour words: a perfect classifier of pure colours."""

    embed_dim = image_width = 3

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(3, 3, bias=False)
        self.see.weight.data = torch.eye(3)
        table = torch.cat([torch.zeros(1, 3), torch.tensor(list(COLOURS.values())) / 255.0, torch.full((1, 3), 0.01)])
        self.read = nn.Embedding.from_pretrained(table)

    def encode_image(self, images):
        pooled = self.see(images.float().mean((2, 3)) / 255)
        return Features(pooled, F.normalize(pooled, dim=1))

    def encode_text(self, tokens):
        pooled = self.read(tokens).sum(1)
        return Features(pooled, F.normalize(pooled, dim=1))

    def scale(self, name="text"):
        del name
        return torch.tensor(10.0)


class Joint(nn.Module):
    """A loss that scores pairs itself."""

    score, activation = "pair", "sigmoid"

    def pair_scores(self, model, images, tokens):
        return model.encode_image(images).embed @ model.encode_text(tokens).embed.T


def model(loss: nn.Module, corpus: Corpus, **changes) -> Loaded:
    step = Step(changes.pop("towers", None) or Colours(), loss).eval()
    plain = Loaded(
        "toy", step, Words(), EvalTransform((8, 8)), corpus.classes, ("a photo of a {}.", "{}"), (str(corpus.path),)
    )
    return plain._replace(**changes)


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), colour).save(path)


def tinted(name: str, number: int) -> tuple[int, int, int]:
    """A shade of the colour: images differ, classes do not."""
    return tuple(max(0, part - 3 * number) if part else 2 * number for part in COLOURS[name])  # pyright: ignore


def colour_corpus(root: Path) -> Corpus:
    """Three colours, 10 images each for training, 4 for test; one red test image stands among the green ones."""
    for split, count in (("train", 10), ("test", 4)):
        for name in COLOURS:
            for number in range(count):
                wrong = split == "test" and name == "green" and number == 0
                picture(root / "pictures" / split / name / f"{number}.png", tinted("red" if wrong else name, number))
    out = root / "corpus"
    prepare(PrepareRequest((str(root / "pictures"),), (), (), out), workers=1)
    return open_corpus(out)


def one_class_of(corpus: Corpus, tmp_path: Path, name: str) -> Corpus:
    """A corpus of four test images of one class."""
    for number in range(4):
        picture(tmp_path / "pictures" / "test" / name / f"{number}.png", tinted("blue" if number else name, number))
    prepare(PrepareRequest((str(tmp_path / "pictures"),), (), (), tmp_path / "one"), workers=1)
    return open_corpus(tmp_path / "one")
