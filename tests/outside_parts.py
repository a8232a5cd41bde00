"""A package of another author, written into a folder: two divergences, a record of its import, and entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOSSES = """
from dataclasses import dataclass
from pathlib import Path

from abkd.divergences import Divergence

Path({marker!r}).touch()


@dataclass(frozen=True)
class Brier(Divergence):
    power: float = 2.0
    formula = "Σ|p-q|^γ"

    def __post_init__(self):
        if self.power <= 0:
            raise RuntimeError("power is not above 0")

    def rows(self, log_p, log_q, targets=None):
        return (log_p.exp() - log_q.exp()).abs().pow(self.power).sum(-1)


@dataclass(frozen=True)
class Both(Divergence):
    first: Divergence
    other: Divergence = Brier()
    formula = "D + D"

    def rows(self, log_p, log_q, targets=None):
        return self.first.rows(log_p, log_q, targets) + self.other.rows(log_p, log_q, targets)


@dataclass(frozen=True)
class Labels:
    text: str = ""


@dataclass
class Changing(Divergence):
    formula = "D"

    def rows(self, log_p, log_q, targets=None): ...


class Bare(Divergence):
    formula = "D"

    def rows(self, log_p, log_q, targets=None): ...


def build():
    raise SystemExit("was called")
"""


def write_package(folder: Path, name: str) -> Path:
    """``NAME.losses`` in ``folder``; the returned file exists once that module was imported."""
    marker = folder / f"{name}-was-imported"
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "losses.py").write_text(LOSSES.format(marker=str(marker)))
    return marker


def register(folder: Path, distribution: str, **components: str) -> None:
    """Install the metadata of a distribution that registers components."""
    place = folder / f"{distribution}-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in components.items()]
    (place / "entry_points.txt").write_text("".join(["[abkd.components]\n", *lines]))


@contextmanager
def forgotten(*names: str) -> Iterator[None]:
    """Remove the modules of these packages afterwards."""
    try:
        yield
    finally:
        for module in [each for each in sys.modules if each.partition(".")[0] in names]:
            del sys.modules[module]
