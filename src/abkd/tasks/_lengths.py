"""Check before training that both models have enough positions for the longest row."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from abkd.config import DistillConfig
from abkd.data import StreamedDataset, TokenizedDataset
from abkd.errors import ConfigError
from abkd.models.positions import positions_of
from abkd.sources import needs_generation, needs_teacher_text
from abkd.tasks.base import Models

logger = logging.getLogger("abkd")


def check_lengths(dataset: TokenizedDataset | StreamedDataset, models: Models, args: DistillConfig) -> None:
    """Compare the actual lengths of the rows with the positions of the models.

    Rows longer than a rotary model saw in pre-training are only logged: its predictions there may be worse.

    Raises:
        ConfigError: a row, or a prompt with its longest completion, is longer than a model's table of positions.
    """
    beyond = []
    for who, model in _models(models):
        positions = positions_of(model)
        if positions is None or _upper_bound(dataset, args) <= positions.count:
            continue
        longest = _longest(dataset, args, who, table=positions.table)
        if longest <= positions.count:
            continue
        name = getattr(model, "name_or_path", "") or type(model).__name__
        if positions.table:
            raise ConfigError(
                f"the {who} ({name}) has {positions.count} positions, and the longest row of {dataset.name} would have "
                f"{longest} tokens: set max_length: {positions.count}, or choose a {who} with more positions"
            )
        beyond.append((longest, f"the {who} ({positions.count})"))
    if beyond and dataset.name != "eval":
        logger.info(
            "abkd: the longest row has %d tokens, more than %s saw in pre-training (max_position_embeddings); "
            "predictions beyond that may be worse; set max_length to truncate rows",
            max(longest for longest, _ in beyond),
            " and ".join(dict.fromkeys(each for _, each in beyond)),
        )


def _models(models: Models) -> Iterator[tuple[str, nn.Module]]:
    yield "student", models.student.model
    for teacher in models.teacher.models if models.teacher is not None else ():
        yield "teacher", teacher


def _writes(args: DistillConfig) -> bool:
    source = args.source
    return needs_generation(source) or needs_teacher_text(source) or args.eval_samples > 0


def _upper_bound(dataset: TokenizedDataset | StreamedDataset, args: DistillConfig) -> float:
    """Upper bound of the tokens in any row, without reading each row."""
    if isinstance(dataset, StreamedDataset):
        return math.inf if dataset.steps.privileged else args.max_length
    if "teacher_input_ids" in dataset.columns:
        return math.inf  # a privileged context precedes the row
    longest = max(dataset.lengths)
    return max(longest, args.max_length) if _writes(args) or "pretrain_ids" in dataset.columns else longest


def _longest(dataset: TokenizedDataset | StreamedDataset, args: DistillConfig, who: str, *, table: bool) -> int:
    """Maximum number of tokens that ``who`` reads at once; for a stream that of its first rows.

    With a ``table`` of positions the rows of a stream count with the length that they may have.
    """
    writes = _writes(args)
    rows = dataset.head if isinstance(dataset, StreamedDataset) else dataset
    longest = max(max(_lengths(dict(row), args, who, writes)) for row in rows)
    return max(longest, args.max_length) if table and rows is not dataset else longest


def _lengths(row: dict[str, Any], args: DistillConfig, who: str, writes: bool) -> Iterator[int]:
    own, trained = row["input_ids"], row["trained"]
    if who == "teacher" and "teacher_input_ids" in row:
        own, trained = row["teacher_input_ids"], row["teacher_trained"]
    yield max(Counter(row["segments"]).values()) if "segments" in row else len(own)
    if who == "student":
        yield len(row.get("pretrain_ids", ()))
    if writes:
        prompt = trained.index(True) if True in trained else len(own)
        yield min(prompt + args.max_completion_length, max(args.max_length, len(own)))
