"""Picture of a trained ImageBind: cosines of the spoken names of a corpus's test rows with its class names.

python benchmarks/imagebind_picture.py RUN CORPUS OUT.png
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.build.load import load_model
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.corpus import open_corpus
from unicl_cli.inference.encoder import Encoder

CELL, LEFT, TOP = 9, 130, 42
LOW, HIGH = (247, 251, 255), (8, 48, 107)


def cosines(run: str, corpus: str) -> tuple[list[str], Tensor]:
    """Return the class names and the mean cosine of each class's sounds, (C, C), with each name's mean prompt."""
    encoder, opened = Encoder(load_model(run)), open_corpus(corpus)
    table = opened.table("test", "labels")
    names = [each.names[0] for each in opened.classes]
    prompts = [fill_template(template, name) for name in names for template in encoder.templates]
    texts = encoder.encode_texts(prompts, batch=256, label="prompts").view(len(names), len(encoder.templates), -1)
    classes = F.normalize(texts.mean(1), dim=1)
    rows = table.media_rows("audio").nonzero()[0].tolist()
    sounds = encoder.encode_media("audio", table, rows, batch=128, label="sounds")
    labels = torch.tensor([table.column("label")[row].as_py() for row in rows])
    means = torch.stack([sounds[labels == label].mean(0) for label in range(len(names))])
    order = sorted(range(len(names)), key=lambda number: tuple(names[number].split()[::-1]))
    return [names[number] for number in order], (means @ classes.T)[order][:, order]


def draw(names: list[str], values: Tensor) -> Image.Image:
    """Draw a matrix: rows are sounds, columns are texts; each row from its lowest to its highest cosine."""
    side = CELL * len(names)
    image = Image.new("RGB", (LEFT + side + 10, TOP + side + 10), "white")
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 8), "text: 48 class names, in the order of the rows", fill="black")
    pen.text((8, 22), "sound: spoken name", fill="black")
    shares = (values - values.amin(1, keepdim=True)) / (values.amax(1, keepdim=True) - values.amin(1, keepdim=True))
    for row, name in enumerate(names):
        pen.text((8, TOP + row * CELL - 2), name, fill="black", font_size=9)
        for column, share in enumerate(shares[row].tolist()):
            colour = tuple(round(low + (high - low) * share) for low, high in zip(LOW, HIGH, strict=True))
            place = LEFT + column * CELL, TOP + row * CELL
            pen.rectangle((*place, place[0] + CELL - 2, place[1] + CELL - 2), fill=colour)
    return image


if __name__ == "__main__":
    run, corpus, out = sys.argv[1:]
    draw(*cosines(run, corpus)).quantize(64).save(Path(out), optimize=True)
