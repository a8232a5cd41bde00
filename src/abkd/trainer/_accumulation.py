"""The micro-batches of one optimizer step, whose sequences may have to be written first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkd.data import Batch, Example, padding_example
from abkd.tasks.base import Collate
from abkd.trainer._distillation import Totals

Draw = Callable[[Sequence[Example]], list[list[Example]]]


@dataclass
class PendingBatch:
    """Rows of the data, and once the step has begun the batch of the sequences that were written to them."""

    rows: list[Example]
    batch: Batch | None = None


@dataclass(frozen=True)
class DeferredCollator:
    """A collator that leaves the rows as they are: ``{"batch": PendingBatch}``."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, PendingBatch]:
        return {"batch": PendingBatch(list(examples))}


def resolve(batch: Batch | PendingBatch) -> Batch:
    """The batch itself; of pending rows what was written to them."""
    if isinstance(batch, Batch):
        return batch
    assert batch.batch is not None
    return batch.batch


class AccumulationBatch:
    """One step's micro-batches in this process, and their totals over all processes.

    Collected ahead, made ready inside the first ``training_step``: the random numbers of a resumed run and the weights
    that write are then those of the step.
    """

    def __init__(self, batches: Sequence[Batch | PendingBatch]) -> None:
        self.batches = batches
        self.totals: Totals | None = None

    def write(self, draw: Draw, collator: Collate) -> None:
        """Replace the pending rows by sequences, all micro-batches at once; a batch without any gets a stand-in.

        Drawn is also for no row at all: processes that write together must all take part.
        """
        waiting = [batch for batch in self.batches if isinstance(batch, PendingBatch)]
        rows = [row for batch in waiting for row in batch.rows if not row.get("is_padding")]
        drawn = iter(draw(rows))
        for batch in waiting:
            sequences = [sequence for row in batch.rows if not row.get("is_padding") for sequence in next(drawn)]
            batch.batch = collator(sequences or [padding_example(batch.rows[0])])["batch"]

    @property
    def ready(self) -> list[Batch]:
        """The batches themselves."""
        return [resolve(batch) for batch in self.batches]
