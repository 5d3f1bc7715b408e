"""Attention maps: the weight that each word of a text gives to each region of an image, as one PNG."""

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unicl_cli.api import NO_LABEL, Drawn, UniclError, decode_pixels, load_model, read_regular, write_note
from unicl_vilbert.model import Vilbert

SIDE, LINE, IN_A_ROW = 144, 16, 6
"""Pixels of an image in the picture and of the line below it; images side by side."""
MOST_BYTES = 100_000_000
"""The largest image file."""


def attention_of(model: Vilbert, tokens: Tensor, images: Tensor, extra: dict[str, Tensor], block: int) -> Tensor:
    """Return the attention of words to `<IMG>` and the regions in a co-attention block, the heads' mean (L, 1 + R)."""
    layer = cast("Any", model.co_layers)[block].words
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any) -> None:
        kept.append(module.weights(*inputs))

    handle = layer.register_forward_pre_hook(keep)
    try:
        model(model.text_tokens(tokens), model.text.there(tokens), model.find(images, extra))
    finally:
        handle.remove()
    return kept[0][0].mean(0)


@torch.no_grad()
def draw_maps(image: Path, text: str, run: str, out: Path, boxes: Path | None, block: int) -> None:
    """Draw one copy of the image per token, its regions as bright as the token's attention to them."""
    loaded = load_model(run)
    model = cast("Any", loaded.step).model
    if not isinstance(model, Vilbert) or not cast("Any", model.co_layers)[0].crossed:
        raise UniclError(f"{run}: not a vilbert model with co-attention", "name a run of such a recipe")
    blocks = len(cast("Any", model.co_layers))
    if not -blocks <= block < blocks:
        raise UniclError(f"--block {block}: the model has {blocks} blocks", "set a number from 0, or -1")
    tokenizer = cast("Any", loaded.tokenizer)
    data = read_file(image)
    pixels = loaded.transform(data)
    media = {} if boxes is None else {"boxes": read_file(boxes)}
    drawn = Drawn(0, 0, 0, pixels, NO_LABEL, text, 0, media, key=str(boxes))
    if hasattr(model, "extra") != (boxes is not None):
        wanted = "needs" if boxes is None else "does not take"
        raise UniclError(f"{run} {wanted} boxes", "set --boxes FILE for a run on boxes, and only there")
    tokens = tokenizer([text])
    if boxes is not None:
        height, width = decode_pixels(data).shape[1:]
        for warning in model.check_rows([(str(boxes), media, (width, height))]):
            write_note(f"warning: {warning}")
    extra = model.extra([drawn], tokens, torch.zeros(1, dtype=torch.int64)) if boxes is not None else {}
    weights = attention_of(model, tokens, pixels[None], extra, block)
    found = model.find(pixels[None], extra)
    corners = found.boxes[0, :, :4][found.there[0]]
    marked = [tokenizer.library.id_to_token(int(token)) or "[MASK]" for token in tokens[0]]
    words = [word.replace("Ġ", "") for word in marked]  # the space before a word in a byte-level BPE
    place_maps(pixels, words, weights[:, 1:][:, found.there[0]], corners).quantize(128).save(out, "PNG", optimize=True)


def read_file(path: Path) -> bytes:
    """Return the bytes of a file that a user named."""
    try:
        return read_regular(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise UniclError(f"{path}: cannot be read: {error}", "check the path") from error


def place_maps(pixels: Tensor, words: list[str], weights: Tensor, corners: Tensor) -> Image.Image:
    """Lay out the maps, six side by side; in each, the region with the most attention has full brightness."""
    base = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    rows = -(-len(words) // IN_A_ROW)
    picture = Image.new("RGB", (min(len(words), IN_A_ROW) * (SIDE + 4), rows * (SIDE + LINE + 4)), "white")
    pen = ImageDraw.Draw(picture)
    for number, (word, row) in enumerate(zip(words, weights, strict=True)):
        x, y = number % IN_A_ROW * (SIDE + 4), number // IN_A_ROW * (SIDE + LINE + 4)
        light = Image.new("L", (SIDE, SIDE), 40)
        shade = ImageDraw.Draw(light)
        for box, share in zip((corners * SIDE).tolist(), (row / row.max()).tolist(), strict=True):
            shade.rectangle(box, fill=40 + int(215 * share))
        picture.paste(Image.composite(base, Image.new("RGB", base.size), light), (x, y))
        pen.text((x + 2, y + SIDE + 2), f"{word} {row.max():.2f}", fill="black")
    return picture
