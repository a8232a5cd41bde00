"""Models so small that every sequence can be enumerated: an expectation over sequences is a sum.

A model is a table of logits, one row for every prefix; a sequence is a path through the table. Whatever the library
computes row by row is then compared with the divergence between the two distributions over sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

import abkd
from abkd import Dense, Divergence, JensenShannon, SkewForwardKL, SkewReverseKL
from abkd.terms import teacher_share


@dataclass(frozen=True)
class Space:
    """All sequences over ``classes`` tokens: of ``length``, or ended earlier by the token ``end``.

    ``row``, ``target`` and ``sequence`` ``[N]`` list every token of every sequence: which row of the table predicts it,
    which class it is, which sequence it belongs to: a batch of all of them.
    """

    classes: int
    length: int
    written: tuple[tuple[int, ...], ...]
    row: Tensor
    target: Tensor
    sequence: Tensor

    @property
    def prefixes(self) -> int:
        """Rows of a table: level by level, each in the order of its digits."""
        return sum(self.classes**t for t in range(self.length))

    def log_prob(self, log_rows: Tensor) -> Tensor:
        """``[S]`` from a table of log-probabilities."""
        return self.sum_along(self.of_tokens(log_rows))

    def of_tokens(self, log_rows: Tensor) -> Tensor:
        """``[N]`` log-probabilities of the tokens."""
        return log_rows[self.row, self.target]

    def sum_along(self, values: Tensor) -> Tensor:
        """``[N]`` -> ``[S]``: the sum over the tokens of each sequence."""
        return values.new_zeros(len(self.written)).index_add(0, self.sequence, values)


def space(classes: int, length: int, end: int | None = None) -> Space:
    written = tuple(dict.fromkeys(_cut(y, end) for y in product(range(classes), repeat=length)))
    tokens = [(_place(y[:t], classes), y[t], number) for number, y in enumerate(written) for t in range(len(y))]
    row, target, sequence = torch.tensor(tokens).unbind(-1)
    return Space(classes, length, written, row, target, sequence)


def _cut(y: tuple[int, ...], end: int | None) -> tuple[int, ...]:
    return y[: y.index(end) + 1] if end in y else y


def _place(prefix: tuple[int, ...], classes: int) -> int:
    level = sum(classes**t for t in range(len(prefix)))
    return level + sum(token * classes**place for place, token in enumerate(reversed(prefix)))


def table(where: Space, seed: int, scale: float = 1.5) -> Tensor:
    """Random logits ``[prefixes, V]``."""
    drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal((where.prefixes, where.classes))
    return torch.from_numpy(scale * drawn)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student over one space, as tables of logits."""

    space: Space
    z_p: Tensor
    z_q: Tensor

    @property
    def log_p(self) -> Tensor:
        return torch.log_softmax(self.z_p, -1)

    @property
    def log_q(self) -> Tensor:
        return torch.log_softmax(self.z_q, -1)

    @property
    def teacher(self) -> Tensor:
        """``log P(y)`` ``[S]``."""
        return self.space.log_prob(self.log_p)

    @property
    def student(self) -> Tensor:
        """``log Q(y)`` ``[S]``."""
        return self.space.log_prob(self.log_q)

    def with_student(self, z_q: Tensor) -> Pair:
        return Pair(self.space, self.z_p, z_q)

    def between_sequences(self, divergence: Divergence) -> Tensor:
        """The divergence between the two distributions over sequences."""
        return divergence(self.teacher, self.student)

    def share(self, prior: float = 0.5) -> Tensor:
        """``[N]``: the teacher's share at every token of every sequence."""
        of_tokens = self.space.of_tokens
        return teacher_share(of_tokens(self.log_p), of_tokens(self.log_q), self.space.sequence, prior)

    def step_wise(self, divergence: Divergence, written_by: Tensor, **how: Any) -> Tensor:
        """The expected sum over the tokens of sequences that are sampled with log-probability ``written_by`` ``[S]``.

        As in the trainer: the op, with every token of every sequence as a row, and no gradient through the sampling.
        """
        row, weight = self.space.row, written_by.detach().exp()[self.space.sequence]
        rows = Dense(self.z_q[row]), Dense(self.z_p[row])
        return abkd.linear_divergence(*rows, divergence, row_weight=weight, total_weight=1.0, **how).loss


def row_by_row(divergence: Divergence, log_p: Tensor, log_q: Tensor, share: Tensor) -> Tensor:
    """``[N]``: a separate divergence per row, whose constant is that row's share of the teacher."""
    made = {
        JensenShannon: JensenShannon,
        SkewForwardKL: SkewForwardKL,
        SkewReverseKL: lambda teacher: SkewReverseKL(1.0 - teacher),
    }[type(divergence)]
    rows = zip(share.tolist(), log_p, log_q, strict=True)
    return torch.stack([made(own)(one, two) for own, one, two in rows])


def reference() -> Pair:
    """The pair of the reference values."""
    where = space(4, 4)
    return Pair(where, table(where, 1), table(where, 2))


def others() -> Iterator[Pair]:
    """Other sizes, other scales, sequences that end by themselves."""
    for seed, (classes, length, end, scale) in enumerate(
        [(2, 5, None, 1.0), (3, 3, 0, 2.5), (4, 3, 1, 0.3), (2, 6, 0, 1.0), (5, 1, None, 1.5)], start=10
    ):
        where = space(classes, length, end)
        yield Pair(where, table(where, seed, scale), table(where, 100 + seed, scale))


PAIRS = [reference(), *others()]
