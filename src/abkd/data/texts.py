"""Texts, or pairs of texts, with or without a class each: their columns, tokens and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from abkd.data.bad_rows import BadRowError, OnBadRow
from abkd.data.collate import Batch, View
from abkd.data.dataset import TokenizedDataset, tokenize_rows
from abkd.data.rows import Row, Rows
from abkd.data.tokenize import Example, TokenizedRow
from abkd.errors import DataError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage"), ("text",), ("sentence",)),
)
_LABELS = ("label", "labels")


def text_columns(rows: Rows, names: str | Sequence[str] | None) -> tuple[str, ...]:
    """The column of the texts, or the two columns of pairs.

    Args:
        names: ``text_column_names``; None finds the columns by their usual names.

    Raises:
        DataError: a column is not there, or there are more than two.
    """
    there = rows.columns
    found = ", ".join(sorted(map(str, there))) or "nothing"
    if names is None:
        chosen = next((each for each in _TEXTS if there.issuperset(each)), None)
        if chosen is None:
            known = ", ".join(" and ".join(each) for each in _TEXTS)
            raise DataError(
                f"{rows.name or 'the dataset'} has no text column: expected one of {known}, got {found}; set "
                "text_column_names"
            )
        return chosen
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if not 1 <= len(chosen) <= 2:
        raise DataError(f"text_column_names must be one column, or two of a pair, got {shown(names)}")
    for name in chosen:
        _check_column(rows, name, "text_column_names", found)
    return chosen


def label_column(rows: Rows, name: str | None) -> str | None:
    """The column of the classes; None if there is none.

    Args:
        name: ``label_column_name``; None finds it by its usual name.

    Raises:
        DataError: a column is not there.
    """
    if name is None:
        return next((each for each in _LABELS if each in rows.columns), None)
    _check_column(rows, name, "label_column_name", ", ".join(sorted(map(str, rows.columns))))
    return name


def _check_column(rows: Rows, name: str, setting: str, found: str) -> None:
    if name not in rows.columns:
        raise DataError(f"{rows.name or 'the dataset'} has no column {name!r} ({setting}), only {found}")


@dataclass(frozen=True)
class TextSteps:
    """Tokenise the text or the pair of a row. Calling it raises BadRowError for a row that cannot be used.

    ``texts``: its columns. ``label``: the column of its class, and ``classes``: the number of each class. Where the
    teacher has another tokenizer, or fewer tokens, its side is kept if it differs from the student's.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    texts: tuple[str, ...]
    label: str | None = None
    classes: Mapping[Any, int] | None = None
    teacher_tokenizer: PreTrainedTokenizerBase | None = None
    teacher_max_length: int | None = None
    columns: ClassVar[tuple[str, ...]] = (
        *("input_ids", "token_type_ids", "label", "teacher_input_ids", "teacher_token_type_ids"),
    )

    def __call__(self, row: Row) -> TokenizedRow:
        texts = [_text(row.get(column), column) for column in self.texts]
        if not any(text.strip() for text in texts):
            raise BadRowError("the text is empty")
        made, cut = _encode(self.tokenizer, texts, self.max_length)
        if self.teacher_tokenizer is not None:
            theirs, lost = _encode(self.teacher_tokenizer, texts, self.teacher_max_length or self.max_length)
            cut = max(cut, lost)
            made |= {f"teacher_{name}": ids for name, ids in theirs.items()} if theirs != made else {}
        if self.label is not None and self.classes is not None:
            made["label"] = [self.classes[row[self.label]]]
        return TokenizedRow([cast(Example, made)], cut)


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise BadRowError(f"{column} must be a string", f"{column} must be a string, got {found}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("the text is not valid Unicode") from error
    return value


def _encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[dict[str, list[int]], int]:
    """The model's inputs, and the number of tokens that ``max_length`` cuts off (the longer text of a pair first)."""
    made = tokenizer(*texts, verbose=False)
    length = len(made["input_ids"])
    if length > max_length:
        made = tokenizer(*texts, truncation=True, max_length=max_length)
    if not made["input_ids"]:
        raise BadRowError("the text has no tokens")
    kept = {name: list(made[name]) for name in ("input_ids", "token_type_ids") if name in made}
    return kept, length - len(made["input_ids"])


class TextDataset(TokenizedDataset):
    """Tokenised texts. ``labelled``: whether they have classes."""

    @property
    def labelled(self) -> bool:
        """Whether the examples have classes."""
        return "label" in self.columns


def prepare_texts(rows: Rows, steps: TextSteps, *, name: str, on_bad_row: OnBadRow = "error") -> TextDataset:
    """Check and tokenise texts.

    Raises:
        DataError: no row can be used, or, unless ``on_bad_row="drop"``, some cannot.
    """
    return TextDataset.of(tokenize_rows(rows, steps, name, on_bad_row), name)


@dataclass(frozen=True, slots=True)
class TextCollator:
    """Examples -> ``{"batch": Batch}`` (a dict, because training loops expect one), one row for each of them.

    Texts are padded on the right to the longest of the batch, where positions count from 0 in every family. Padding
    examples are left out; in a batch of nothing else, one is kept with weight 0, so that the model has an input.

    ``padding``, ``teacher_padding``: the token ids that the two models take for padding.
    """

    padding: int
    teacher_padding: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Batch]:
        """The batch of these examples."""
        chosen = [each for each in examples if not each.get("is_padding")] or list(examples[:1])
        student = _view(chosen, self.padding)
        teacher = student
        if self.padding != self.teacher_padding or any("teacher_input_ids" in each for each in chosen):
            teacher = _view([_teacher_side(each) for each in chosen], self.teacher_padding)
        labels = [each["label"][0] for each in chosen if "label" in each]
        weight = torch.zeros(1) if chosen[0].get("is_padding") else torch.ones(len(chosen))
        batch = Batch(
            student=student,
            teacher=teacher,
            targets=torch.tensor(labels) if labels else None,
            weight=weight,
            origin=torch.zeros_like(student.rows),
            sequence=student.rows,
        )
        return {"batch": batch}


def _teacher_side(example: Mapping[str, Any]) -> Mapping[str, Any]:
    if "teacher_input_ids" not in example:
        return example
    return {name.removeprefix("teacher_"): ids for name, ids in example.items() if name.startswith("teacher_")}


def _view(examples: Sequence[Mapping[str, Any]], padding: int) -> View:
    """``input_ids``, ``attention_mask`` and, if the tokenizer gives them, ``token_type_ids``: int64 [B, T]."""
    lengths = [len(each["input_ids"]) for each in examples]
    inputs = {"input_ids": _padded([each["input_ids"] for each in examples], max(lengths), padding)}
    inputs["attention_mask"] = _padded([[1] * length for length in lengths], max(lengths), 0)
    if any("token_type_ids" in each for each in examples):
        inputs["token_type_ids"] = _padded([each.get("token_type_ids", []) for each in examples], max(lengths), 0)
    return View(inputs=inputs, rows=torch.arange(len(examples)))


def _padded(lists: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([[*each, *[fill] * (length - len(each))] for each in lists])
