"""The figures of ``benchmarks.which_source`` as tables, on the screen and in ``which_source.md`` and ``.json``."""

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
    "Held out; forward and reverse KL to the live teacher in nats a token, whoever taught. R_cvg: how unlikely the "
    "student finds what the teacher writes; R_llh: how unlikely the teacher finds what the student writes (nats a "
    "token, lower is better). One seed: small differences mean nothing."
)
_COST_NOTE = (
    "Beforehand: the teacher's text is written, or the cache is built, the loading of the teacher with it. Tokens/s: "
    "answer tokens that were learnt from, for each second of the training."
)


def write(rows: Sequence[Row], size: Row, facts: dict[str, Any], folder: Path, console: Console) -> None:
    """Both tables and the verdict to the console and to ``folder``."""
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
    told = {"facts": facts, "size": dict(size), "rows": [dict(row) for row in rows], "directions": verdicts}
    (folder / "which_source.json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")


def directions(rows: Mapping[str, Row]) -> list[str]:
    """Whether forward KL on the teacher's text covers, and reverse KL on the student's text stays with the teacher."""
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
        f"{size['steps_before']} steps (`before`), and goes on from there for {size['steps']} steps of "
        f"{size['batch_size']} rows with each, by forward KL where nothing else is said.\n"
    )


def _cells(row: Row, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    return [row["name"], *("–" if row.get(key) is None else format(row[key], form) for _, key, form in columns)]
