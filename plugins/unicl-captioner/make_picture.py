"""The picture of the README: images of shapes, and the caption that a run writes for each.

python make_picture.py RUN
"""

import io
import sys
import textwrap
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image

from unicl_cli.api import load_model
from unicl_cli.data.sources.shapes import shapes

ROWS, COLUMNS = 3, 6


def main() -> None:
    mpl.use("agg")
    import matplotlib.pyplot as plt

    loaded, source = load_model(sys.argv[1]), shapes(kind="captions", seed=0)
    rows = source.rows("test")
    # two columns each of the classes 0-17 with labels, 18-35 of captions alone, 36-47 that training never shows
    places = [18 * (column // 2) + 6 * (column % 2) + 2 * row for row in range(ROWS) for column in range(COLUMNS)]
    images = [source.read(rows[place])["image"] for place in places]
    pixels = torch.stack([loaded.transform(image) for image in images])
    captions = loaded.step.loss.write(loaded.step.model, pixels)
    texts = loaded.tokenizer.decode([each.words for each in captions])
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(8, 5.4), dpi=70)
    for place, image, text in zip(axes.flat, images, texts, strict=True):
        place.imshow(Image.open(io.BytesIO(image)), interpolation="nearest")
        place.set_title("\n".join(textwrap.wrap(text, 20)), fontsize=8)
        place.axis("off")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("captions.png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
