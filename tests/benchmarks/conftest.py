"""Makes the benchmark scripts importable: they are not part of the package, but in the root of the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
