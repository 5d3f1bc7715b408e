"""A source whose rows are all in one split that the user names: `photos?split=test`."""

from collections.abc import Mapping, Sequence
from typing import Any

from unicl_cli.contracts import ClassName, DatasetSource, Row
from unicl_cli.data.sources.splits import SPLITS, split_of
from unicl_cli.errors import UniclError, did_you_mean


class WholeSplit:
    """The rows of ``source``, which has one split, as ``split``; its optional attributes are those of ``source``."""

    def __init__(self, source: DatasetSource, split: str, src: str) -> None:
        self._source, self._split, self._src = source, split, src

    @property
    def splits(self) -> Sequence[str]:
        """The one split. UniclError if the source has several."""
        own = self._source.splits
        if len(own) > 1:
            raise UniclError(
                f"{self._src}: has the splits {', '.join(own)}: they cannot all become '{self._split}'",
                "remove split= from the source, or name a part of it that has one split",
            )
        return [self._split]

    @property
    def classes(self) -> Sequence[ClassName]:
        return self._source.classes

    @property
    def templates(self) -> Sequence[str] | str:
        return self._source.templates

    def rows(self, split: str) -> Sequence[Row]:
        return self._source.rows(self._source.splits[0]) if split in self.splits else []

    def read(self, row: Row) -> Mapping[str, bytes]:
        return self._source.read(row)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def name_split(source: DatasetSource, named: str, src: str) -> WholeSplit:
    """Put all rows of ``source`` into the split that ``named`` means. UniclError for a word that means none."""
    split = split_of(named)
    if split is None:
        raise UniclError(
            f"{src}: unknown split '{named}'{did_you_mean(named, SPLITS)}", "use split=train, split=val or split=test"
        )
    return WholeSplit(source, split, src)
