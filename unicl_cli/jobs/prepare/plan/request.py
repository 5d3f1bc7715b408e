"""A request to prepare a corpus: its sources, its directory and its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unicl_cli.data.sources.resolve import SourceSpec, name_sources
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.shards.download import Downloads


@dataclass(frozen=True)
class PrepareOptions:
    """Options that change the bytes of a corpus."""

    templates: str | tuple[str, ...] | None = None
    size: int | None = None
    min_side: int = 0
    holdout: float | None = None
    shard_mb: int = 256
    limit: int | None = None
    text: str = "clean"
    dedup: str = "off"
    keep_order: bool = False
    taxonomy: str | None = None
    query_list: str | None = None
    max_per_query: int | None = None
    balance: int | None = None
    not_in: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UniclError for an unknown value of `--text` or `--dedup`."""
        for option, value, words in (
            ("--text", self.text, ("clean", "raw")),
            ("--dedup", self.dedup, ("off", "exact", "near")),
        ):
            if value not in words:
                raise UniclError(f"{option}: unknown value '{value}'", f"use {', '.join(words)}")


class PrepareRequest(NamedTuple):
    """Sources by kind as the command line has them, the directory of the corpus and the options.

    ``downloads`` and ``retry_failed`` decide which images are downloaded now, and are no part of the plan.
    """

    labels: tuple[str, ...]
    captions: tuple[str, ...]
    images: tuple[str, ...]
    out: Path
    options: PrepareOptions = PrepareOptions()
    downloads: Downloads = Downloads()
    retry_failed: bool = False

    def sources(self) -> list[SourceSpec]:
        """Name every source. UniclError if there are none."""
        specs = name_sources(self.labels, self.captions, self.images)
        if not specs:
            raise UniclError("nothing to prepare: no source given", "add at least one --labels, --captions or --images")
        return specs
