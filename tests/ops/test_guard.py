"""The chunk fits into memory: chosen from the free memory, halved if that was not enough."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from op_parts import gap, gradients, problem
from torch import Tensor

import abkd
from abkd.memory import available_mb
from abkd.ops import ChunkPlan, Head, _linear_divergence, plan_chunks

CPU = torch.device("cpu")
AB = abkd.AlphaBeta(0.2, 0.7)


def group(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_the_control_group_counts(tmp_path: Path) -> None:
    machine = available_mb(CPU, tmp_path)
    assert machine is None or machine > 100
    limited = group(tmp_path, memory__max=f"{96 * 2**20}\n", memory__current=f"{32 * 2**20}\n")
    assert available_mb(CPU, limited) == 64.0
    assert available_mb(CPU, group(tmp_path, memory__max="max\n")) == pytest.approx(machine, rel=0.5)


def test_a_quarter_of_what_is_free_is_taken_and_said(monkeypatch, caplog) -> None:
    monkeypatch.setattr(_linear_divergence, "available_mb", lambda _: 256.0)
    assert plan_chunks(4096, 50_000, CPU, memory_budget_mb=64.0) == plan_chunks(
        4096, 50_000, CPU, memory_budget_mb=64.0
    )
    assert not caplog.messages
    with caplog.at_level(logging.WARNING, logger="abkd"):
        assert plan_chunks(4096, 50_000, CPU) == plan_chunks(4096, 50_000, CPU, memory_budget_mb=64.0)
    assert "256 MB are free, so the loss uses chunks of 64 MB" in caplog.text


def test_where_nobody_tells_the_budget_holds(monkeypatch) -> None:
    monkeypatch.setattr(_linear_divergence, "available_mb", lambda _: None)
    assert plan_chunks(4096, 151_936, CPU).rows_per_chunk == 192


NO_ROOM = [
    torch.OutOfMemoryError("no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("no memory for one row of 300000 classes"),
]


@pytest.mark.parametrize(("fits", "refusal"), [*zip([1, 3, 6], NO_ROOM, strict=True)], ids=["GPU", "CPU", "C"])
def test_a_chunk_that_does_not_fit_is_halved_and_nothing_counts_twice(
    monkeypatch, caplog, fits: int, refusal: Exception
) -> None:
    one = problem(13, bias=True, dtype=torch.float64)
    wanted = gradients(one, AB, plan=ChunkPlan(fits, False))
    write = Head._write

    def limited(self: Head, hidden: Tensor, out: Tensor) -> Tensor:
        if len(hidden) > fits:
            raise refusal
        return write(self, hidden, out)

    monkeypatch.setattr(Head, "_write", limited)
    result, given = gradients(one, AB, plan=ChunkPlan(12, False))
    assert result.plan == ChunkPlan(fits, False)
    assert gap(result.loss, wanted[0].loss) < 1e-12
    for name, gradient in given.items():
        expected = wanted[1][name]
        assert gradient is not None
        assert expected is not None
        assert gap(gradient, expected) < 1e-12
    assert f"continues with {fits} rows per chunk" in caplog.text


def test_a_row_that_does_not_fit_is_an_error(monkeypatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Head, "_write", full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        problem().solve(AB, plan=ChunkPlan(4, False))


def test_the_graph_may_be_used_twice() -> None:
    one = problem(9, bias=True, scale=0.7)
    loss = one.solve(AB, plan=ChunkPlan(4, False)).loss
    leaves = list(one.leaves.values())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    twice = torch.autograd.grad(2 * loss, leaves)
    for gradient, double in zip(first, twice, strict=True):
        assert torch.allclose(2 * gradient, double)
