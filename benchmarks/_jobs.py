"""Measurements as jobs: each runs in a fresh process, is recorded when done, and is not repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _machine

Job = dict[str, Any]
Line = dict[str, Any]
"""``{"job", "facts", "code", "result"}``: a line of a record."""


def measure(job: Job, worker: str) -> dict[str, Any]:
    """The result of a job, from a fresh process of the module ``worker``.

    Raises:
        RuntimeError: the process failed; the message has the end of its stderr.
    """
    command = [sys.executable, "-m", worker, json.dumps(job)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=_machine.ROOT)
    if done.returncode:
        raise RuntimeError(f"{job} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(record: Path, line: Line) -> None:
    """Append a line."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(record: Path, facts: dict[str, Any]) -> dict[str, Line]:
    """The lines of a record for this machine and these versions, by the key of the job; the newest of each."""
    if not record.is_file():
        return {}
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return {key(line["job"]): line for line in lines if line["facts"] == facts}


def done(known: dict[str, Line], wanted: Sequence[Job]) -> list[Line]:
    """The lines of the requested jobs."""
    return [known[key(job)] for job in wanted if key(job) in known]


def key(job: Job) -> str:
    """A string that identifies a job."""
    return json.dumps(job, sort_keys=True, ensure_ascii=False)
