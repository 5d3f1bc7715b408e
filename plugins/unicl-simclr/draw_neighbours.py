"""Drawing of neighbours.png: test images of a corpus, each with its nearest ones before and after a training.

    unicl train digits-simclr --run-dir runs/simclr
    python draw_neighbours.py runs/simclr quickstart/colours neighbours.png

Needs matplotlib. A green frame means that the neighbour is of the same class.
"""

import sys
from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import load_model

QUERIES, NEIGHBOURS = 6, 5


def read_test_images(corpus: Path) -> tuple[list[bytes], list[int]]:
    """Return the encoded images and the classes of split test."""
    from pyarrow import parquet

    tables = [parquet.read_table(file) for file in sorted((corpus / "data" / "test").glob("*.parquet"))]
    images = [row["bytes"] for table in tables for row in table.column("image").to_pylist()]
    return images, [label for table in tables for label in table.column("label").to_pylist()]


def nearest_rows(step: nn.Module, pixels: Tensor) -> Tensor:
    """Return the rows of the nearest other images of the first ones: (n, 3, H, W) -> (QUERIES, NEIGHBOURS)."""
    with torch.no_grad():
        features = F.normalize(step.call("encode_image", pixels).pooled, dim=1)
    cosines = features[:QUERIES] @ features.T
    cosines.fill_diagonal_(-1)
    return cosines.topk(NEIGHBOURS, dim=1).indices


def show(axes: Axes, pixels: Tensor, colour: str | None) -> None:
    """Draw an image with a frame."""
    axes.imshow(Image.fromarray(pixels.permute(1, 2, 0).numpy()), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=colour is not None, color=colour, linewidth=3)


def main() -> None:
    run, corpus, out = sys.argv[1:]
    images, labels = read_test_images(Path(corpus))
    trained = load_model(run)
    pixels = torch.stack([trained.transform(image) for image in images])
    after = nearest_rows(trained.step, pixels)
    torch.manual_seed(0)
    for module in trained.step.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    before = nearest_rows(trained.step, pixels)
    figure, grid = pyplot.subplots(QUERIES, 2 * NEIGHBOURS + 2, figsize=(8.4, 4.6))
    for query in range(QUERIES):
        show(grid[query, 0], pixels[query], "black")
        grid[query, NEIGHBOURS + 1].set_axis_off()
        for first, rows in ((1, before), (NEIGHBOURS + 2, after)):
            for place, row in enumerate(rows[query].tolist()):
                same = labels[row] == labels[query]
                show(grid[query, first + place], pixels[row], "tab:green" if same else "tab:red")
    grid[0, 3].set_title("nearest before training")
    grid[0, NEIGHBOURS + 4].set_title("after")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.92, wspace=0.1, hspace=0.1)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
