"""The benchmark's problems (cases) and implementations (contestants), as plain data for a JSON file."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

FORWARD, REVERSE, JENSEN = "ForwardKL()", "ReverseKL()", "JensenShannon()"
PAPER, OTHER, SKEW = "AlphaBeta(0.2, 0.7)", "AlphaBeta(0.8, 0.3)", "SkewForwardKL()"
EVERY = (FORWARD, REVERSE, JENSEN, PAPER, OTHER, SKEW)
WITH_PEERS = (FORWARD, REVERSE, JENSEN)  # the divergences of TRL's function and Liger's module


@dataclass(frozen=True)
class Case:
    """One problem: shapes, dtype, share of rows with weight, and the loss of each row."""

    rows: int = 1024
    classes: int = 49_152
    student: int = 576
    teacher: int = 960
    dtype: str = "float32"
    weighted: float = 1.0
    divergence: str = FORWARD
    ce_weight: float = 0.0
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The display name."""
        number = {"float32": "fp32", "bfloat16": "bf16"}[self.dtype]
        parts = [self.divergence.removesuffix("()"), f"{self.rows}×{self.classes}", number]
        parts += [f"{self.weighted:.0%} of rows"] if self.weighted != 1 else []
        parts += ["hard labels"] if self.ce_weight else []
        return ", ".join(parts)

    @property
    def slug(self) -> str:
        """The name in file names."""
        return slug(f"{self.name}-{self.student}-{self.teacher}-{self.device}")


@dataclass(frozen=True)
class Contestant:
    """An implementation: its kind, and the settings that differ from its defaults."""

    kind: str
    setting: tuple[int, ...] = ()
    compiled: bool = True

    @property
    def name(self) -> str:
        """The display name; at default settings, the kind alone."""
        unit = {"abkd": " MB", "trl": " tiles"}.get(self.kind, " rows")
        setting = " " + "×".join(map(str, self.setting)) + unit if self.setting else ""
        return f"{self.kind}{setting}" + ("" if self.compiled else " eager")

    @property
    def remote(self) -> bool:
        """Whether it needs its own process: our eager path is selected by an environment variable."""
        return self.kind == "abkd" and not self.compiled


FLOOR, OURS, TEXTBOOK = Contestant("floor"), Contestant("abkd"), Contestant("textbook")
EAGER, TRL, LIGER = Contestant("abkd", compiled=False), Contestant("trl"), Contestant("liger")
PACKAGES = {"trl": "trl", "liger": "liger_kernel"}


class Job(NamedTuple):
    """A case with its contestants, and whether peak memory is measured too."""

    case: Case
    contestants: tuple[Contestant, ...]
    memory: bool = True


def refusal(contestant: Contestant, case: Case) -> str | None:
    """Why this contestant cannot run the case: a missing feature or package; None if it can."""
    package = PACKAGES.get(contestant.kind)
    if package is None:
        return None
    if case.divergence not in WITH_PEERS:
        return f"offers no {case.divergence}"
    if contestant.kind == "trl" and case.ce_weight:
        return "offers no hard labels"
    return f"{package} is not installed" if importlib.util.find_spec(package) is None else None


def slug(text: str) -> str:
    """``text`` as a safe file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("×", "x").replace("%", "pc")).strip("-")


def to_json(job: Case | Contestant) -> dict[str, Any]:
    """The fields, for a JSON file."""
    return dataclasses.asdict(job)


def contestant_from(fields: dict[str, Any]) -> Contestant:
    """The contestant that :func:`to_json` wrote."""
    return Contestant(fields["kind"], tuple(fields["setting"]), fields["compiled"])


def ligers(*chunks: int, compiled: tuple[bool, ...] = (True, False)) -> tuple[Contestant, ...]:
    """Liger at these chunk sizes (rows), compiled and not."""
    return tuple(Contestant("liger", (rows,), mode) for rows in chunks for mode in compiled)


def budgets(*megabytes: int) -> tuple[Contestant, ...]:
    """Ours at these memory budgets."""
    return tuple(Contestant("abkd", (size,)) for size in megabytes)


def tiles(*sizes: tuple[int, int]) -> tuple[Contestant, ...]:
    """TRL's function with these tiles (rows × classes)."""
    return tuple(Contestant("trl", size) for size in sizes)


def quick_jobs(base: Case) -> list[Job]:
    """The jobs of ``make bench``: every divergence once, and every other factor once."""
    curve = (FLOOR, OURS, EAGER, *budgets(16, 64, 1024), TEXTBOOK, TRL, *tiles((256, 8192)), LIGER)
    plain, peers = (FLOOR, OURS, TEXTBOOK), (FLOOR, OURS, TEXTBOOK, TRL, LIGER)
    peers += ligers(128, 256, compiled=(True,))
    paper = replace(base, divergence=PAPER)
    return [
        Job(base, curve + ligers(64, 128, 256) + ligers(1024, compiled=(False,))),
        Job(replace(base, divergence=REVERSE), peers),
        Job(replace(base, divergence=JENSEN), peers),
        Job(paper, (*plain, EAGER)),
        *(Job(replace(base, divergence=name), plain) for name in (OTHER, SKEW)),
        *(Job(replace(paper, weighted=share), plain, memory=False) for share in (0.5, 0.1)),
        Job(replace(paper, ce_weight=1.0), plain, memory=False),
        Job(replace(base, dtype="bfloat16"), peers, memory=False),
        Job(replace(paper, classes=151_936, student=512, teacher=1024), plain),
    ]


def full_jobs(base: Case) -> list[Job]:
    """All jobs: each factor varied around the base case for every divergence, and the large shapes."""
    everyone = (FLOOR, OURS, EAGER, TEXTBOOK, TRL, LIGER, *ligers(64, 128, 256), *ligers(1024, compiled=(False,)))
    curve = (
        *budgets(8, 16, 32, 64, 128, 512, 1024),
        *tiles((4096, 8192), (1024, 8192), (256, 32768), (256, 8192)),
        *ligers(512),
    )
    bases = [replace(base, divergence=name) for name in EVERY]
    jobs = [Job(each, everyone + curve if each.divergence in (FORWARD, JENSEN, PAPER) else everyone) for each in bases]
    for change in ({"weighted": 0.5}, {"weighted": 0.1}, {"ce_weight": 1.0}, {"dtype": "bfloat16"}):
        jobs += [Job(replace(each, **change), everyone) for each in bases]
    shapes = [(1024, 151_936, 512, 1024), (2048, 262_144, 640, 1152)]
    if base.device == "cuda":
        shapes.append((16_384, 262_144, 640, 1152))
    for rows, classes, student, teacher in shapes:
        large = replace(base, rows=rows, classes=classes, student=student, teacher=teacher)
        jobs += [Job(replace(large, divergence=name), everyone) for name in (FORWARD, JENSEN, PAPER)]
    return jobs
