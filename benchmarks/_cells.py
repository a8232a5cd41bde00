"""Finished measurements on disk, one JSON file each, so that a stopped run can be continued."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._cases import Case, Contestant, slug, to_json
from benchmarks._machine import NO_COMPILER, ROOT, code_digest, facts

# Freed memory is returned to the system at once, so that a call cannot reuse it and its peak is its own.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


class Failed(RuntimeError):
    """A measurement's process exited without a result."""


class Cells:
    """A script's folder of finished cells ``{"facts", "code", "job", "result"}``; measures those that are missing.

    A cell is reused if its job, the machine, the threads and all versions are the same.
    """

    def __init__(self, folder: Path, name: str, *, threads: int, device: str = "cpu", fresh: bool = False) -> None:
        self.folder = folder / "cells" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.threads = threads
        self.facts = facts(threads, device)
        self.code = code_digest()
        self.of_other_code: list[str] = []
        if fresh:
            for file in self.folder.glob("*.json"):
                file.unlink()

    def timing(self, case: Case, contestants: Sequence[Contestant], rounds: int, *, check: bool = True) -> Any:
        """The times of all contestants: the result of ``_timing.timing``."""
        job = self._job("timing", case, contestants) | {"rounds": rounds, "check": check}
        return self._cell(f"time-{case.slug}", job, {})

    def memory(self, case: Case, one: Contestant) -> Any:
        """The peak memory of one contestant: the result of ``_timing.memory``."""
        environment = _GIVE_BACK | (NO_COMPILER if one.remote else {})
        return self._cell(f"memory-{case.slug}-{slug(one.name)}", self._job("memory", case, [one]), environment)

    def _job(self, do: str, case: Case, contestants: Sequence[Contestant]) -> dict[str, Any]:
        return {
            "do": do,
            "case": to_json(case),
            "contestants": [to_json(one) for one in contestants],
            "threads": self.threads,
        }

    def _cell(self, name: str, job: dict[str, Any], environment: Mapping[str, str]) -> Any:
        text = json.dumps(job)
        key = hashlib.sha256((text + json.dumps(self.facts)).encode()).hexdigest()[:8]
        file = self.folder / f"{name}-{key}.json"
        if file.exists():
            cell = json.loads(file.read_text())
            if cell["code"] != self.code:
                self.of_other_code.append(file.name)
            return cell["result"]
        began = time.time()
        cell = {"facts": self.facts, "code": self.code, "job": job, "result": run_worker(text, environment)}
        cell |= {"measured": time.strftime("%Y-%m-%d %H:%M"), "took_s": round(time.time() - began, 1)}
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(cell, indent=1))
        partial.replace(file)
        return cell["result"]


def run_worker(job: str, environment: Mapping[str, str]) -> Any:
    """The result of one job in a fresh process.

    Raises:
        Failed: with the last lines of the process's stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks._worker", job, str(file)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
        if done.returncode or not file.exists():
            last = "\n".join(done.stderr.strip().splitlines()[-8:])
            raise Failed(f"exited with status {done.returncode}{' (killed)' if done.returncode < 0 else ''}: {last}")
        return json.loads(file.read_text())
