"""The figures of ``benchmarks.which_source`` as tables, on the console and in ``which_source.md`` and ``.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import _tables

Row = Mapping[str, Any]
_QUALITY = (
    ("forward KL", "forward_kl", ".3f"),
    ("reverse KL", "reverse_kl", ".3f"),
    ("perplexity", "perplexity", ",.1f"),
    ("R_cvg", "r_cvg", ".2f"),
    ("R_llh", "r_llh", ".2f"),
    ("ROUGE-L greedy", "rouge_l_greedy", ".1f"),
    ("sampled", "rouge_l_sampled", ".1f"),
)
_COST = (
    ("beforehand, s", "beforehand_seconds", ",.0f"),
    ("training, s", "train_seconds", ",.0f"),
    ("of it writing, s", "writing_seconds", ",.0f"),
    ("tokens/s", "tokens_per_second", ",.0f"),
    ("student's share", "on_policy_fraction", ".0%"),
)
_QUALITY_NOTE = (
    "On held-out rows; forward and reverse KL always to the live teacher, in nats per token. R_cvg: negative "
    "log-likelihood of the teacher's text under the student; R_llh: of the student's text under the teacher (nats per "
    "token, lower is better). One seed: small differences are not significant."
)
_COST_NOTE = (
    "Beforehand: generating the teacher's text or building the cache, including loading the teacher. Tokens/s: trained "
    "answer tokens per second of training."
)


def write(rows: Sequence[Row], size: Row, facts: dict[str, Any], folder: Path, console: Console) -> None:
    """Write both tables and the verdicts to the console and to ``folder``."""
    verdicts = directions({row["name"]: row for row in rows})
    parts = ["# Which source when\n", _tables.about(facts, "python -m benchmarks.which_source"), _setting(size)]
    for title, columns, note in (("Quality", _QUALITY, _QUALITY_NOTE), ("Cost", _COST, _COST_NOTE)):
        names = ("from", *(column for column, _, _ in columns))
        cells = [_cells(row, columns) for row in rows if any(row.get(key) is not None for _, key, _ in columns)]
        _tables.show(console, title, names, cells)
        lines = ["| " + " | ".join(line) + " |" for line in (names, ["---"] + ["--:"] * len(columns), *cells)]
        parts += [f"## {title}\n", "\n".join(lines) + "\n", f"{note}\n"]
    parts += ["## f-DISTILL's direction\n", "\n".join(f"* {verdict}" for verdict in verdicts) + "\n"]
    for verdict in verdicts:
        console.print(verdict, highlight=False)
    (folder / "which_source.md").write_text("\n".join(parts), encoding="utf-8")
    values = {"facts": facts, "size": dict(size), "rows": [dict(row) for row in rows], "directions": verdicts}
    (folder / "which_source.json").write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def directions(rows: Mapping[str, Row]) -> list[str]:
    """Whether forward KL on the teacher's text wins R_cvg (coverage), and reverse KL on the student's text R_llh."""
    forward, reverse = rows["teacher's text, sampled"], rows["student's text, reverse KL"]
    return [
        f"{who} wins {name}: {'yes' if mine[key] < other[key] else 'no'} ({mine[key]:.2f} against {other[key]:.2f})"
        for who, name, key, mine, other in (
            ("Forward KL on the teacher's text", "coverage, R_cvg", "r_cvg", forward, reverse),
            ("Reverse KL on the student's text", "likelihood, R_llh", "r_llh", reverse, forward),
        )
    ]


def _setting(size: Row) -> str:
    return (
        f"The demo's pair and text ({size['rows']} rows). The student was distilled on the data for "
        f"{size['steps_before']} steps (`before`), and continues from there for {size['steps']} steps of "
        f"{size['batch_size']} rows with each source, by forward KL unless noted otherwise.\n"
    )


def _cells(row: Row, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    return [row["name"], *("–" if row.get(key) is None else format(row[key], form) for _, key, form in columns)]
