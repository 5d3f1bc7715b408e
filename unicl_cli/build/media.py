"""Checks of the media that rows have besides images, before a model or a loss uses them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from unicl_cli.build.data import HAS_TOWER, TrainingData, images_alone
from unicl_cli.core.loop import Step
from unicl_cli.data.corpus import RowTable, integers_of
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import MediaKind


def check_media(step: Step, data: TrainingData, reader: str | None = None) -> None:
    """Raise UniclError if the loss learns from the model's media, and no row of the mix has some of a kind.

    Also if it reads none, and the mix has images without label or text while the model has a text tower or another
    ``reader`` of texts (`reader_of`): they would teach nothing.
    """
    if not getattr(step.loss, "reads_media", False):
        reader = reader or (HAS_TOWER if getattr(step.model, "text", None) is not None else None)
        if reader is not None and any(s.kind == "images" for s in data.mix.strands):
            raise images_alone(reader)
        return
    for kind in cast("Sequence[MediaKind]", getattr(step.model, "media", ())):
        if not any(strand.has_media(kind.name) for strand in data.mix.strands):
            raise UniclError(
                f"data.train: no row has {kind.name}, which the loss learns from",
                f"add a corpus with {kind.name}, or remove {kind.name} from the model",
            )


def check_rows(step: Step, data: TrainingData) -> list[str]:
    """Let model and loss check the media of all rows of the mix before the first step; return their warnings."""
    rows = [(s.table, range(s.size) if s.rows is None else s.rows.tolist()) for s in data.mix.strands]
    return check_media_of(step, rows)


def check_media_of(step: Step, tables: Sequence[tuple[RowTable, Iterable[int]]]) -> list[str]:
    """Call the optional ``check_rows`` of model and loss with these rows of tables; return their warnings."""

    def media() -> Iterator[tuple[str, Mapping[str, bytes], tuple[int, int]]]:
        for table, rows in tables:
            widths, heights = (integers_of(table.column(name)) for name in ("width", "height"))
            for row in rows:
                sample = table.read(row, media=True, image=False)
                yield sample.key, sample.media, (int(widths[row]), int(heights[row]))

    checks: list[Any] = [getattr(part, "check_rows", None) for part in (step.model, step.loss)]
    return [warning for check in checks if check is not None for warning in check(media())]
