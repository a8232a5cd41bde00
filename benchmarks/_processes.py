"""Fresh processes of this interpreter, in which everything is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._machine import ROOT

Job = dict[str, Any]
"""A measurement to be made, as JSON."""


class Failed(RuntimeError):
    """A process exited without a result."""


def run(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The last line that a Python process prints.

    Raises:
        Failed: it exited with another status than 0; with the end of its stderr.
    """
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **(environment or {})}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=os.environ | own, cwd=ROOT)
    if done.returncode:
        killed = " (killed)" if done.returncode < 0 else ""
        raise Failed(f"a process exited with status {done.returncode}{killed}:\n{done.stderr[-3000:]}")
    return (done.stdout.splitlines() or [""])[-1]


def measure(job: Job, worker: str, environment: Mapping[str, str] | None = None) -> Any:
    """The result of a job: a process of the module ``worker`` gets it as JSON and prints the result as JSON.

    Raises:
        Failed: the process exited without a result.
    """
    return json.loads(run(["-m", worker, json.dumps(job)], environment))
