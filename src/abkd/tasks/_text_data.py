"""Prepare text for the trainer: tokenised, packed or streamed rows, with plain text next to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from abkd.config import DistillConfig
from abkd.data import (
    Example,
    Rows,
    RowStream,
    StreamedDataset,
    TokenizedDataset,
    choose_template,
    pack,
    prepare_dataset,
    prepare_stream,
    pretraining_chunks,
    say_of_templates,
)
from abkd.data.progress import progress
from abkd.errors import ConfigError, DataError
from abkd.sequence_rules import check_streaming
from abkd.settings import Settings
from abkd.sources import is_privileged, needs_completions, privileged_context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_data(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: Settings,
    name: str,
    pretrain_chunks: Sequence[Sequence[int]] | None = None,
    *,
    teachers: Mapping[str, PreTrainedTokenizerBase] = MappingProxyType({}),
) -> TokenizedDataset | StreamedDataset | None:
    """Tokenised rows, packed if ``packing`` is set, each with a chunk of plain text if ``lm_coef`` is.

    ``teachers``: tokenizers of the teachers that have names, by name.

    Raises:
        DataError, ConfigError: rows that cannot be used, or missing plain text.
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
            raise ConfigError("lm_coef > 0 needs plain text: set pretrain_file, or lm_coef: 0")
        tokenized = tokenized.with_pretraining(pretrain_chunks)
    return tokenized


def first_example(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, settings: Settings, teachers: Mapping[str, PreTrainedTokenizerBase]
) -> Example:
    """The first training example. Raises DataError if the row cannot be used; arguments as for :func:`prepare_data`."""
    source = settings.source
    dataset = prepare_dataset(
        rows[:1],
        tokenizer,
        max_length=settings.max_length,
        apply_chat_template=choose_template(settings.apply_chat_template, tokenizer, teachers),
        completions=needs_completions(source),
        context=privileged_context(source),
        privileged=is_privileged(source),
    )
    return dataset[0]


def plain_text(pretrain: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Sequence[Sequence[int]] | None:
    """Plain text for the language-modelling term: token lists unchanged, rows with a column ``text`` tokenised.

    Raises:
        ConfigError, DataError: rows without that column, or a value in it that is not a string.
    """
    if not isinstance(pretrain, Rows):
        return pretrain
    if "text" not in pretrain[0]:
        raise ConfigError(f"{pretrain.name} must have a column 'text', got {', '.join(pretrain[0])}")
    texts = progress(_texts(pretrain), len(pretrain), "tokenising the plain text")
    return pretraining_chunks(texts, tokenizer, max_length)


def _texts(rows: Rows) -> Iterator[str]:
    for number, row in zip(rows.numbers, rows, strict=True):
        text = row.get("text")
        if not isinstance(text, str):
            found = "none" if text is None else f"a {type(text).__name__}"
            raise DataError(f"pretrain_file {rows.name}, {rows.place(int(number))}: expected a string, got {found}")
        yield text


def _check_streamed(args: DistillConfig, name: str) -> None:
    if name != "train":
        raise ConfigError("only training rows can be streamed: pass the held-out set as a file")
    check_streaming(
        args.source,
        args.teacher,
        max_steps=args.max_steps,
        packing=args.packing,
        group_by_length=args.group_by_length,
    )
