"""Collate examples into a batch of rows. Shifting, padding and packing are handled here and nowhere else.

After collation, row n means: position ``rows[n]`` of the flattened output predicts token ``targets[n]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from abkd.data.tokenize import Example
from abkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Inputs of one model, and which of its outputs are the rows.

    inputs: ``input_ids`` and ``position_ids`` int64 [B, T]; ``attention_mask`` int64 [B, T], or for packed rows
    bool [B, 1, T, T].
    rows: int64 [N], flat index b·T + t of the position whose output predicts row n.
    labels: for images, int64 [B], the class of each; negative if unknown, or if two images are mixed.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    labels: Tensor | None = None

    def inputs_for(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """``inputs`` with the mask of packed rows in the form that this transformers model's attention expects.

        SDPA needs a boolean mask (one CUDA kernel misreads a float mask whose dtype differs from the queries'). Eager
        attention adds the mask to the scores, so True and False would count as 1 and 0. Raises ConfigError for other
        implementations.
        """
        mask = self.inputs["attention_mask"]
        kind = model.config._attn_implementation
        if mask.ndim == 2 or kind == "sdpa":
            return self.inputs
        if kind != "eager":
            raise ConfigError(f"packing needs attn_implementation sdpa or eager, got {kind!r} ({type(model).__name__})")
        added = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
        return {**self.inputs, "attention_mask": added}

    def to(self, device: torch.device | str, **kwargs: Any) -> View:
        """The same view with its tensors on ``device``; ``kwargs`` as for ``Tensor.to``."""
        moved = {name: tensor.to(device, **kwargs) for name, tensor in self.inputs.items()}
        labels = None if self.labels is None else self.labels.to(device, **kwargs)
        return View(inputs=moved, rows=self.rows.to(device, **kwargs), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """N rows as the student and as the teacher see them (the same object if both read the same input).

    targets: int64 [N], the token or class that row n should predict; None without labels.
    weight: float32 [N]. origin: int64 [N], the source of the completion (``Origin.code``).
    sequence: int64 [N], index of the row's sequence (or image) in the batch (in packed rows, each segment is a
    sequence).
    pretrain, pretrain_targets: the same for plain text, where all tokens but the first are targets; or None.
    """

    student: View
    teacher: View
    targets: Tensor | None
    weight: Tensor
    origin: Tensor
    sequence: Tensor
    pretrain: View | None = None
    pretrain_targets: Tensor | None = None

    def __len__(self) -> int:
        """N; 0 for a batch in which nothing is trained."""
        return self.weight.numel()

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """The same batch with its tensors on ``device``; a view that student and teacher share stays shared."""
        student = self.student.to(device, **kwargs)
        return Batch(
            student=student,
            teacher=student if self.teacher is self.student else self.teacher.to(device, **kwargs),
            targets=None if self.targets is None else self.targets.to(device, **kwargs),
            weight=self.weight.to(device, **kwargs),
            origin=self.origin.to(device, **kwargs),
            sequence=self.sequence.to(device, **kwargs),
            pretrain=None if self.pretrain is None else self.pretrain.to(device, **kwargs),
            pretrain_targets=None if self.pretrain_targets is None else self.pretrain_targets.to(device, **kwargs),
        )


@dataclass(frozen=True, slots=True)
class Collator:
    """Examples -> ``{"batch": Batch}`` (a dict, because training loops expect one).

    ``pad_to_multiple_of`` rounds T up to a multiple. The padding side and the pad token do not affect any row.
    Examples without a teacher side are read alike by both models; those without pre-training text add nothing to it.
    Raises DataError if the two sides of an example differ in the number of trained tokens.
    """

    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Batch]:
        """The batch of these examples."""
        student, targets = self._view(examples)
        teacher = student
        if any("teacher_input_ids" in example for example in examples):
            teacher, _ = self._view([_teacher_side(example) for example in examples])
        pretrain, pretrain_targets = None, None
        if plain := [_all_trained(example["pretrain_ids"]) for example in examples if "pretrain_ids" in example]:
            pretrain, pretrain_targets = self._view(plain)
        batch = Batch(
            student=student,
            teacher=teacher,
            targets=targets,
            weight=torch.ones(targets.numel()),
            origin=self._of_rows(
                student, [[example.get("origin", 0)] * len(example["trained"]) for example in examples]
            ),
            sequence=self._of_rows(student, _sequences(examples)),
            pretrain=pretrain,
            pretrain_targets=pretrain_targets,
        )
        return {"batch": batch}

    def _view(self, examples: Sequence[Example]) -> tuple[View, Tensor]:
        """The view of these examples and the targets [N] of its rows."""
        ids = self._pad([example["input_ids"] for example in examples], self.pad_token_id)
        trained = self._pad([example["trained"] for example in examples], 0).bool()
        # segments count from 1, padding is 0; a token and its predecessor must be in the same segment to form a row
        segments = self._pad([_segments(example) for example in examples], 0)
        same = torch.zeros_like(trained)
        same[:, 1:] = segments[:, 1:] == segments[:, :-1]
        chosen = (trained & same).flatten().nonzero().squeeze(1)
        inputs = {"input_ids": ids, "position_ids": _positions(segments), "attention_mask": (segments > 0).long()}
        if any("segments" in example for example in examples):
            inputs["attention_mask"] = _block_causal(segments)
        return View(inputs=inputs, rows=chosen - 1), ids.flatten()[chosen]

    def _of_rows(self, view: View, values: Sequence[Sequence[int]]) -> Tensor:
        """Values [N] at the target of each row, given one value per token."""
        return self._pad(values, 0).flatten()[view.rows + 1]

    def _pad(self, values: Sequence[Sequence[int]], fill: int) -> Tensor:
        """int64 [B, T]."""
        length = max(map(len, values))
        length += -length % (self.pad_to_multiple_of or 1)
        padded = torch.full((len(values), length), fill, dtype=torch.int64)
        for line, value in zip(padded, values, strict=True):
            start = length - len(value) if self.padding_side == "left" else 0
            line[start : start + len(value)] = torch.tensor(value, dtype=torch.int64)
        return padded


def _segments(example: Example) -> list[int]:
    if "segments" in example:
        return [segment + 1 for segment in example["segments"]]
    return [1] * len(example["input_ids"])


def _sequences(examples: Sequence[Example]) -> list[list[int]]:
    """Index of the sequence in the batch that each token belongs to."""
    numbered, count = [], 0
    for example in examples:
        segments = _segments(example)
        numbered.append([count + segment - 1 for segment in segments])
        count += max(segments)
    return numbered


def _positions(segments: Tensor) -> Tensor:
    """Index of each token in its segment, 0 for padding, so learned positions (GPT-2) ignore the padding side."""
    index = torch.arange(segments.shape[1]).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(starts, index, 0).cummax(dim=1).values
    return (index - first) * (segments > 0)


def _block_causal(segments: Tensor) -> Tensor:
    """Whether each query attends to each key, bool [B, 1, T, T]. Padding attends to padding, so no query has no key."""
    same = segments[:, :, None] == segments[:, None, :]
    return (same & torch.ones_like(same[0]).tril())[:, None]


def _teacher_side(example: Example) -> Example:
    if "teacher_input_ids" not in example:
        return example
    trained = example.get("teacher_trained", [])
    mine, theirs = sum(example["trained"][1:]), sum(trained[1:])
    if mine != theirs:
        raise DataError(f"teacher and student must have the same number of trained tokens, got {theirs} and {mine}")
    return Example(input_ids=example["teacher_input_ids"], trained=trained)


def _all_trained(ids: list[int]) -> Example:
    return Example(input_ids=ids, trained=[True] * len(ids))
