"""The micro-batches of one optimizer step, whose sequences may have to be generated first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkd.data import Batch, Example, padding_example
from abkd.objective import Columns
from abkd.tasks.base import Collate
from abkd.trainer._distillation import Totals

Draw = Callable[[Sequence[Example]], list[list[Example]]]


@dataclass
class PendingBatch:
    """Rows of the dataset and, once the step has started, the batch of sequences generated for them."""

    rows: list[Example]
    batch: Batch | None = None


@dataclass(frozen=True)
class DeferredCollator:
    """A collator that returns the rows unchanged: ``{"batch": PendingBatch}``."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, PendingBatch]:
        return {"batch": PendingBatch(list(examples))}


def resolve(batch: Batch | PendingBatch) -> Batch:
    """Return the batch itself or, for pending rows, the batch of their generated sequences."""
    if isinstance(batch, Batch):
        return batch
    assert batch.batch is not None
    return batch.batch


class AccumulationBatch:
    """One step's micro-batches in this process, and their totals over all processes.

    Collected in advance but prepared inside the first ``training_step``, so that generation uses the weights and the
    random state of that step, also in a resumed run.
    """

    def __init__(self, batches: Sequence[Batch | PendingBatch]) -> None:
        self.batches = batches
        self.totals: Totals | None = None
        self.columns: dict[int, Columns] = {}

    def columns_of(self, batch: Batch) -> Columns:
        """The numbers of a batch's rows that depend on the whole step."""
        return self.columns.get(id(batch), {})

    def write(self, draw: Draw, collator: Collate) -> None:
        """Generate the sequences of the pending rows, for all micro-batches at once; an empty batch gets padding.

        ``draw`` is called even without rows: processes that generate together must all take part.
        """
        waiting = [batch for batch in self.batches if isinstance(batch, PendingBatch)]
        rows = [row for batch in waiting for row in batch.rows if not row.get("is_padding")]
        drawn = iter(draw(rows))
        for batch in waiting:
            sequences = [sequence for row in batch.rows if not row.get("is_padding") for sequence in next(drawn)]
            batch.batch = collator(sequences or [padding_example(batch.rows[0])])["batch"]

    @property
    def ready(self) -> list[Batch]:
        """The batches, after generation."""
        return [resolve(batch) for batch in self.batches]
