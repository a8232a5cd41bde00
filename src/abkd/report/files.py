"""What a run directory says about its run."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from abkd.errors import DataError
from abkd.storage import read_json

logger = logging.getLogger("abkd")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The contents of a run directory; what is missing there is empty here."""

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
            DataError: none of them is there, or one is not what its name says.
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
        """The command that repeats it, from any directory: paths in the recipe are relative to where it was begun.

        Nothing where it was begun in Python, with rows or models that no recipe can name.
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
        """The log events that hold held-out numbers, in order of their step."""
        return [event for event in self.metrics if any(map(is_measured, event))]


def is_measured(key: str) -> bool:
    """Whether a name in a log event is that of a held-out number."""
    return key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))


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
        raise DataError(f"{path} should hold one mapping of names to values, not a {type(value).__name__}.")
    return value


def _events(path: Path) -> list[Record]:
    """The log events; what is no event (a line that a crash cut short) is left out and counted."""
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
            "abkd: %s: %d of %d lines are no log records and are left out (%s)", path, len(broken), len(found), some
        )
    return [event for _, event in found if event is not None]


def _event(line: str) -> Record | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None
