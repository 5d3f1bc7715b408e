"""The picture of the README: images of shapes, and the words that a run finds likeliest.

python make_picture.py RUN
"""

import io
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image

from unicl_cli.api import load_model
from unicl_cli.data.sources.shapes import shapes

COUNT, WORDS = 6, 5


def main() -> None:
    mpl.use("agg")
    import matplotlib.pyplot as plt

    loaded, source = load_model(sys.argv[1]), shapes(kind="captions", seed=0)
    rows = source.rows("test")
    images = [source.read(rows[8 * number + 1])["image"] for number in range(COUNT)]
    pixels = torch.stack([loaded.transform(image) for image in images])
    loss = loaded.step.loss
    with torch.no_grad():
        found = loss.logits(loaded.step.model, pixels).softmax(1)
    tops, places = found.topk(WORDS, dim=1)
    figure, axes = plt.subplots(2, COUNT, figsize=(9, 3.2), dpi=80, height_ratios=(1, 1))
    for number, image in enumerate(images):
        axes[0, number].imshow(Image.open(io.BytesIO(image)), interpolation="nearest")
        axes[0, number].axis("off")
        names = loaded.tokenizer.decode([[int(loss.kept[place])] for place in places[number]])
        axes[1, number].barh(range(WORDS), 100 * tops[number], color="C0")
        axes[1, number].set_yticks(range(WORDS), names, fontsize=8)
        axes[1, number].set(xlim=(0, 40), xticks=(0, 20, 40))
        axes[1, number].tick_params(labelsize=8)
        axes[1, number].invert_yaxis()
    axes[1, 0].set_xlabel("p(word), %", fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("words.png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
