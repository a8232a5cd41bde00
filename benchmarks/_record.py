"""Finished measurements on disk, so that a stopped benchmark can be continued."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import _machine
from benchmarks._processes import Job

Line = dict[str, Any]
"""``{"job", "facts", "code", "result"}``: a line of a record."""
Measure = Callable[[Job], Any]


class Record:
    """A JSON Lines file. A measurement is reused if its job, the machine, the threads and all versions are the same."""

    def __init__(self, file: Path, facts: dict[str, Any], code: Sequence[str] = _machine.LOSS, *, fresh: bool) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            file.unlink(missing_ok=True)
        lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.is_file() else []
        self.file, self.facts, self.code = file, facts, _machine.code_digest(code)
        self._known: dict[str, Line] = {_key(line["job"]): line for line in lines if line["facts"] == facts}

    def result(self, job: Job, measure: Measure) -> Any:
        """The result of a job, measured and recorded now if it is missing."""
        if _key(job) not in self._known:
            line = {"job": job, "facts": self.facts, "code": self.code, "result": measure(job)}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._known[_key(job)] = line
        return self._known[_key(job)]["result"]

    def complete(self, jobs: Sequence[Job], measure: Measure, console: Console, *, at_most: int | None = None) -> None:
        """Measure the missing jobs, or at most so many of them."""
        missing = [job for job in jobs if _key(job) not in self._known][:at_most]
        for job in track(missing, f"{len(missing)} of {len(jobs)} measurements", console=console):
            self.result(job, measure)

    def lines(self, jobs: Iterable[Job]) -> list[Line]:
        """The lines of those jobs that have been measured."""
        return [self._known[_key(job)] for job in jobs if _key(job) in self._known]

    def warn(self, lines: Iterable[Line], console: Console) -> None:
        """Say how many of these lines were measured with another version of the code."""
        others = sum(line["code"] != self.code for line in lines)
        if others:
            console.print(f"{others} of these measurements were made with another version of the code; use --fresh")


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True, ensure_ascii=False)
