"""The training and held-out rows of a recipe, for tasks whose data are rows of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from abkd.data import Rows, RowStream, load_rows, split_held_out, stream_rows
from abkd.run_inputs import DataSettings


def read_rows(
    data: DataSettings, *, seed: int, columns: Callable[[Rows], Sequence[str]] | None = None
) -> tuple[Rows | RowStream, Rows | None]:
    """The training rows and the held-out ones (or None); a split of the source is preferred to a fraction of it.

    Args:
        seed: for the choice of the held-out rows.
        columns: returns the columns in which no held-out row equals a training row; by default these are the prompts.

    Raises:
        DataError: a file that cannot be used.
    """
    source = data.train_file or data.dataset_name
    assert source is not None  # checked when the recipe is read
    read: Any = stream_rows if data.streaming else load_rows
    train = read(source, config=data.dataset_config, split=data.dataset_train_split)
    if data.eval_file:
        return train, load_rows(data.eval_file)
    if data.dataset_test_split:
        return train, load_rows(source, config=data.dataset_config, split=data.dataset_test_split)
    if data.streaming or data.share_held_out == 0 or len(train) < 2:
        return train, None
    same = None if columns is None else columns(train)
    return split_held_out(train, data.share_held_out, seed=seed, columns=same)
