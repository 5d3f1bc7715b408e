"""The command `unicl vilbert`: the text stream's own training, and attention maps."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train ViLBERT's text stream; draw attention maps.")


@app.command()
def text(
    file: Annotated[Path, typer.Argument(help="Text file: a sentence per line, an empty line between documents.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for weights, config.json and tokenizer.json.")],
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 500,
    batch: Annotated[int, typer.Option(min=1, help="Sentence pairs per step.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    width: Annotated[int, typer.Option(min=1, help="Width of the stream.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = 3,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the feed-forward layers.")] = 128,
    length: Annotated[int, typer.Option(min=8, help="Longest pair, in tokens.")] = 48,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json; fitted on FILE if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
) -> None:
    """Train a text stream on masked words and next sentences.

    Example: unicl vilbert text sentences.txt -o runs/text
    """
    from unicl_bert.bert import Size
    from unicl_bert.pretraining import Numbers, train_text

    size = Size(0, width, layers, heads, hidden, length)
    last = train_text(file, out, size, tokenizer, Numbers(steps, batch, lr, length, seed))
    typer.echo(f"masked words {last['words_acc']:.3f}, next sentence {last['next_acc']:.3f} of the last batch: {out}")


@app.command()
def maps(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    words: Annotated[str, typer.Argument(metavar="TEXT", help="Text to read with it.")],
    model: Annotated[Path, typer.Option("--model", help="Run of a vilbert model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to write.")],
    boxes: Annotated[Path | None, typer.Option(help="JSON with width, height and boxes, for a run on boxes.")] = None,
    block: Annotated[int, typer.Option(help="Co-attention block, from 0; -1 is the last.")] = -1,
) -> None:
    """Draw the attention that each word pays to the regions of an image.

    Example: unicl vilbert maps cat.png "a cat" --model runs/vilbert -o maps.png
    """
    from unicl_vilbert.maps import draw_maps

    draw_maps(image, words, str(model), out, boxes, block)
    typer.echo(out)
