"""The measurements of ``benchmarks.loss`` and ``.scaling``: jobs for ``_worker``, made once and recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import _processes
from benchmarks._cases import Case, Contestant, to_json
from benchmarks._machine import NO_COMPILER, facts
from benchmarks._processes import Job
from benchmarks._record import Record

# Freed memory is returned to the system at once, so that a call cannot reuse it and its peak is its own.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


class LossRecord:
    """A script's measurements, in ``NAME.jsonl``; those that are missing are made."""

    def __init__(self, folder: Path, name: str, *, threads: int, device: str = "cpu", fresh: bool = False) -> None:
        self.facts = facts(threads, device)
        self._threads = threads
        self._record = Record(folder / f"{name}.jsonl", self.facts, fresh=fresh)
        self._used: list[Job] = []

    def timing(self, case: Case, contestants: Sequence[Contestant], rounds: int, *, check: bool = True) -> Any:
        """The times of all contestants: the result of ``_timing.timing``."""
        return self._result("timing", case, contestants, {}, rounds=rounds, check=check)

    def memory(self, case: Case, one: Contestant) -> Any:
        """The peak memory of one contestant: the result of ``_timing.memory``."""
        return self._result("memory", case, [one], _GIVE_BACK | (NO_COMPILER if one.remote else {}))

    def warn(self, console: Console) -> None:
        """Say how many of the measurements that were used are of another version of the code."""
        self._record.warn(self._record.lines(self._used), console)

    def _result(
        self, do: str, case: Case, contestants: Sequence[Contestant], environment: Mapping[str, str], **more: Any
    ) -> Any:
        who = [to_json(one) for one in contestants]
        job = {"do": do, "case": to_json(case), "contestants": who, "threads": self._threads, **more}
        self._used.append(job)
        return self._record.result(job, lambda job: _processes.measure(job, "benchmarks._worker", environment))
