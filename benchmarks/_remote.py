"""A contestant that needs its own environment: it runs in another process and takes its turn in the rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks._cases import Case, Contestant, contestant_from, to_json
from benchmarks._inputs import Answer
from benchmarks._machine import NO_COMPILER, ROOT


class Remote:
    """``Local`` in another process without a compiler; each call is a line sent to it, the reply its seconds."""

    def __init__(self, case: Case, one: Contestant, threads: int) -> None:
        job = {"do": "serve", "case": to_json(case), "contestants": [to_json(one)], "threads": threads}
        command = [sys.executable, "-m", "benchmarks._worker", json.dumps(job)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | NO_COMPILER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()  # closes its stdin, which ends the process

    def seconds(self) -> float:
        """One call, timed in the other process."""
        return self._ask("call")

    def answer(self) -> Answer:
        """The result of the last call."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "answer.pt"
            self._ask(f"answer {file}")
            return Answer(**torch.load(file, weights_only=True))

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise EOFError(f"the process without a compiler exited with status {self._process.wait()}")
        return json.loads(reply)


def serve(case: Case, fields: dict[str, Any], threads: int) -> None:
    """The other process: replies to each line on stdin with a JSON value, until stdin is closed."""
    from benchmarks._contestants import build
    from benchmarks._inputs import make_inputs
    from benchmarks._timing import Local

    torch.set_num_threads(threads)
    inputs = make_inputs(case)
    local = Local(build(contestant_from(fields), inputs), inputs)
    for line in sys.stdin:
        order, _, file = line.strip().partition(" ")
        if order == "answer":
            torch.save(vars(local.answer()), file)
        print(json.dumps(local.seconds() if order == "call" else None), flush=True)
