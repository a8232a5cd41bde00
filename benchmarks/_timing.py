"""Timing of all contestants in rounds, after a comparison with the reference; and the peak memory of one of them."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks._cases import Case, Contestant
from benchmarks._contestants import Call, build, needed_bytes
from benchmarks._inputs import TOLERANCE, Answer, Inputs, errors, make_inputs, reference
from benchmarks._machine import available_bytes, can_reset_peak, peak_above, seconds
from benchmarks._remote import Remote

ROUNDS, FEW_ROUNDS, SLOW_SECONDS = 5, 3, 20.0
_SPARE = 0.9  # of the free memory


class Local:
    """A contestant in this process."""

    def __init__(self, call: Call, inputs: Inputs) -> None:
        self._call, self._inputs = call, inputs
        self._loss = torch.zeros(())

    def seconds(self) -> float:
        """One timed call, without the gradients of the previous one."""
        self._inputs.forget_gradients()
        return seconds(self._once, self._inputs.case.device)

    def answer(self) -> Answer:
        """The result of the last call."""
        hidden, weight = self._inputs.hidden.grad, self._inputs.weight.grad
        assert hidden is not None
        assert weight is not None
        return Answer(self._loss.item(), hidden, weight)

    def _once(self) -> None:
        self._loss = self._call()


def timing(
    case: Case, contestants: Sequence[Contestant], rounds: int, threads: int, *, check: bool = True
) -> list[dict[str, Any]]:
    """One entry per contestant: first call, seconds of every round, errors; or why it was skipped."""
    torch.set_num_threads(threads)
    inputs = make_inputs(case)
    wanted = reference(inputs) if check else None
    with ExitStack() as stack:
        runners: dict[str, Local | Remote] = {}
        entries = []
        for one in contestants:
            entry: dict[str, Any] = {"contestant": one.name}
            entries.append(entry)
            runner = _runner(one, inputs, threads, entry, stack)
            if runner is not None and _first(runner, one, entry, wanted, case):
                runners[one.name] = runner
        del wanted
        _rounds(runners, {entry["contestant"]: entry for entry in entries}, rounds)
    return entries


def _runner(
    one: Contestant, inputs: Inputs, threads: int, entry: dict[str, Any], stack: ExitStack
) -> Local | Remote | None:
    _skip_if_too_large(one, inputs.case, entry)
    if "skipped" in entry:
        return None
    if one.remote:
        return stack.enter_context(Remote(inputs.case, one, threads))
    try:
        return Local(build(one, inputs), inputs)
    except ImportError as error:
        entry["skipped"] = f"cannot be imported: {error}"
        return None


def _skip_if_too_large(one: Contestant, case: Case, entry: dict[str, Any]) -> None:
    needed, free = needed_bytes(one, case), available_bytes(case.device)
    if needed > _SPARE * free:
        entry["skipped"] = f"does not fit: needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


def _first(runner: Local | Remote, one: Contestant, entry: dict[str, Any], wanted: Answer | None, case: Case) -> bool:
    """Run the first call and compare its answer with the reference; returns whether it ran."""
    try:
        entry["first_s"] = runner.seconds()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "memory" not in str(error):
            raise
        entry["skipped"] = "does not fit: an allocation failed"
        return False
    if wanted is not None and one.kind != "floor":
        entry["errors"] = errors(runner.answer(), wanted)
        worst = max(entry["errors"].values())
        entry["wrong"] = not (math.isfinite(worst) and worst <= TOLERANCE[case.dtype])
    return True


def _rounds(runners: dict[str, Local | Remote], entries: dict[str, dict[str, Any]], rounds: int) -> None:
    gc.collect()
    for turn in range(rounds):
        for name, runner in runners.items():
            entries[name].setdefault("seconds", []).append(runner.seconds())
        slowest = max((statistics.median(entries[name]["seconds"]) for name in runners), default=0.0)
        if slowest > SLOW_SECONDS and turn + 1 >= FEW_ROUNDS:
            return


def memory(case: Case, one: Contestant, threads: int) -> dict[str, Any]:
    """Peak memory of one call above the inputs and the two gradients."""
    torch.set_num_threads(threads)
    inputs = make_inputs(case)
    entry: dict[str, Any] = {"contestant": one.name}
    _skip_if_too_large(one, case, entry)
    if "skipped" in entry:
        return entry
    try:
        call = build(one, inputs)
    except ImportError as error:
        return entry | {"skipped": f"cannot be imported: {error}"}
    try:
        if case.device == "cuda" or can_reset_peak():
            call()  # a warm-up: loading libraries and compiling does not count
        inputs.forget_gradients()
        peak, entry["read_from"] = peak_above(call, case.device)
    except (torch.OutOfMemoryError, MemoryError):
        return entry | {"skipped": "does not fit: an allocation failed"}
    return entry | {"peak_bytes": max(0, peak - inputs.output_bytes)}
