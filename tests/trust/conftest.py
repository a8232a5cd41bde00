"""T1 to T22: what users of a distillation library must be able to rely on (docs/trust.md has the figures)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for room in ("ops", "teachers"):  # problems for the op: T12 to T14; a cache in one line: T22
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / room))
pytest.register_assert_rewrite("op_parts")
