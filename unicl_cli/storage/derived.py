"""A sequence whose values are computed when they are read, so that a list of any length takes no memory for them."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class Derived(Sequence[T]):
    """A sequence of ``len()`` values, each of which `derive` computes."""

    @abstractmethod
    def derive(self, at: int) -> T:
        """Return the value at a place from 0 to before the length."""

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self.derive(place) for place in range(len(self))[at]]
        return self.derive(range(len(self))[at])

    def __iter__(self) -> Iterator[T]:
        return map(self.derive, range(len(self)))
