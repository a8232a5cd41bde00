"""Rows of text as the trainer reads them: tokenised, packed, streamed, with plain text beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from abkd.config import DistillConfig
from abkd.data import (
    RowStream,
    StreamedDataset,
    TokenizedDataset,
    choose_template,
    pack,
    prepare_dataset,
    prepare_stream,
    say_of_templates,
)
from abkd.errors import ConfigError
from abkd.sequence_rules import check_streaming
from abkd.settings import Settings
from abkd.sources import is_privileged, needs_completions, privileged_context


def prepare_data(
    dataset: Any,
    tokenizer: Any,
    args: Settings,
    name: str,
    pretrain_chunks: Sequence[Sequence[int]] | None = None,
    *,
    teachers: Mapping[str, Any] = MappingProxyType({}),
) -> TokenizedDataset | StreamedDataset | None:
    """Tokenised rows, packed if asked for, each with a chunk of plain text where ``lm_coef`` wants it.

    ``teachers``: the tokenizers of the teachers whose names are known, by name.

    Raises:
        DataError, ConfigError: rows that cannot be used, or no plain text.
    """
    if dataset is None:
        return None
    source = args.source
    options: dict[str, Any] = {
        "max_length": args.max_length,
        "apply_chat_template": choose_template(args.apply_chat_template, tokenizer, teachers),
        "on_bad_row": args.on_bad_row,
        "name": name,
        "completions": name == "train" and needs_completions(source),
        "context": privileged_context(source),
        "privileged": is_privileged(source),
    }
    if isinstance(dataset, RowStream):
        assert isinstance(args, DistillConfig)  # the length of a stream follows from the training arguments
        _check_streamed(args, name)
        rows = args.max_steps * args.gradient_accumulation_steps * args.train_batch_size * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        tokenized = prepare_stream(dataset, tokenizer, length=rows, seed=seed, **options)
    else:
        tokenized = prepare_dataset(dataset, tokenizer, **options)
    if name == "train":
        say_of_templates(tokenized.account, tokenizer, teachers)
    if args.packing and isinstance(tokenized, TokenizedDataset):
        tokenized = pack(tokenized, args.max_length)
    if name == "train" and args.lm_coef:
        if not pretrain_chunks:
            raise ConfigError("lm_coef is above 0 but there is no plain text: give pretrain_file, or set lm_coef: 0")
        tokenized = tokenized.with_pretraining(pretrain_chunks)
    return tokenized


def _check_streamed(args: DistillConfig, name: str) -> None:
    if name != "train":
        raise ConfigError("rows are streamed for training only: give those to evaluate on as a file")
    check_streaming(
        args.source,
        args.teacher,
        max_steps=args.max_steps,
        packing=args.packing,
        group_by_length=args.group_by_length,
    )
