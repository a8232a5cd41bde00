"""Interface of the datasets that the trainer uses, for text and images alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset


class ExampleDataset(Dataset[Any]):
    """Checked examples in order.

    ``name``: for messages. ``dropped``: rows left out, by reason. ``truncated``: number of rows that were truncated.
    ``indexed_by_epoch``: whether an example also depends on the epoch; its key is then ``(epoch, index)``, or the
    index alone when the epoch does not matter (in evaluation). ``lengths``: the length of each example; empty if they
    have none.
    """

    name: str
    dropped: Mapping[str, int]
    truncated: int = 0
    indexed_by_epoch: bool = False
    lengths: Sequence[int] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all content in order; equal on every machine."""

    def spread(self, count: int) -> list[int]:
        """Indices of ``count`` examples, spread evenly."""
        count = min(count, len(self))
        return [i * len(self) // count for i in range(count)]

    @abstractmethod
    def padding_example(self) -> object:
        """An example without rows, for a process that has run out of examples while others continue."""
