"""Reads the files of a run directory."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from abkd.errors import DataError
from abkd.metrics import HELD_OUT, OF_TEACHER
from abkd.storage import read_json

logger = logging.getLogger("abkd")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The contents of a run directory; the field of a missing file is empty."""

    directory: Path
    recipe_text: str = ""
    recipe: Record = field(default_factory=dict)
    run: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    demo: Record = field(default_factory=dict)
    sweep: Record = field(default_factory=dict)

    @classmethod
    def read(cls, run_dir: Path) -> RunFiles:
        """Read the files of ``run_dir``.

        Raises:
            DataError: none of them exists, or one has invalid contents.
        """
        recipe_text = _text(run_dir / "recipe.yaml")
        found = cls(
            directory=run_dir.resolve(),
            recipe_text=recipe_text,
            recipe=_yaml(run_dir / "recipe.yaml", recipe_text),
            run=_json(run_dir / "run.json"),
            metrics=_events(run_dir / "metrics.jsonl"),
            demo=_json(run_dir / "demo.json"),
            sweep=_json(run_dir / "sweep.json"),
        )
        if not (found.recipe or found.run or found.metrics or found.demo or found.sweep):
            raise DataError(
                f"{run_dir} is not a run directory: it has no recipe.yaml, run.json, metrics.jsonl, demo.json or "
                "sweep.json. Give the output_dir of a finished run."
            )
        return found

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.name

    def command(self, *words: str) -> str:
        """The command that reproduces the run, from any directory: recipe paths are relative to where it was started.

        Empty if it was started in Python, with rows or models that a recipe cannot name.
        """
        if self.run.get("begun_in") == "Python" or not self.recipe:
            return ""
        processes = self.run.get("processes") or 1
        launch = ["accelerate", "launch", "--num_processes", str(processes), "-m"] if processes > 1 else []
        place = str(self.directory)
        line = shlex.join(
            [*launch, "abkd", "distill", f"{place}/recipe.yaml", *words, "--output_dir", f"{place}-again"]
        )
        begun = self.run.get("working_directory") or self.sweep.get("working_directory")
        return f"(cd {shlex.quote(str(begun))} && {line})" if begun else line

    @property
    def evaluations(self) -> list[Record]:
        """The log events with evaluation metrics, in order of their step."""
        return [event for event in self.metrics if any(map(is_measured, event))]


def is_measured(key: str) -> bool:
    """Whether a key of a log event is an evaluation metric; transformers logs the speed of evaluations beside them."""
    return key.startswith(HELD_OUT) and not key.endswith(("_runtime", "_per_second"))


def held_out_values(event: Record) -> tuple[Record, Record]:
    """The student's and the teacher's evaluation metrics in a log event, by name."""
    student: Record = {}
    teacher: Record = {}
    for key, value in event.items():
        if key.startswith(OF_TEACHER):
            teacher[key.removeprefix(OF_TEACHER)] = value
        elif is_measured(key):
            student[key.removeprefix(HELD_OUT)] = value
    return student, teacher


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _yaml(path: Path, text: str) -> Record:
    try:
        value = yaml.safe_load(text) or {}
    except RecursionError as error:
        raise DataError(
            f"{path} is nested too deeply. Restore it or remove it, then write the report again."
        ) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # a number of 5 000 digits, a wrong tag
        raise DataError(
            f"{path} is not YAML: {error}. Restore it or remove it, then write the report again."
        ) from error
    return _mapping(path, value)


def _json(path: Path) -> Record:
    try:
        value = read_json(path) if path.exists() else {}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON: {error}. Restore it or remove it, then write the report again."
        ) from error
    return _mapping(path, value)


def _mapping(path: Path, value: object) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{path} must contain a mapping of names to values, got {type(value).__name__}")
    return value


def _events(path: Path) -> list[Record]:
    """The log events; lines that are not events (such as one truncated by a crash) are skipped and counted."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    found = [(number, _event(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    broken = [number for number, event in found if event is None and number < len(lines)]  # the last may be half a line
    if broken:
        some = ", ".join(map(str, broken[:3])) + ", …" * (len(broken) > 3)
        logger.warning(
            "abkd: %s: %d of %d lines are not log records and are skipped (%s)", path, len(broken), len(found), some
        )
    return [event for _, event in found if event is not None]


def _event(line: str) -> Record | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None
