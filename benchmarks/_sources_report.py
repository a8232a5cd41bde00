"""The figures of ``benchmarks.sources`` as tables, on the console and in ``sources.md``, and in ``sources.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import _tables
from benchmarks._sources_claims import Judged, claims
from benchmarks._sources_figures import EPOCHS, STEPS_OF_EPOCH, Figures, Line, Spread, figures


class Section(NamedTuple):
    """A table with an explanatory note."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    note: str


def write(lines: Sequence[Line], folder: Path, console: Console) -> None:
    """Tables to the console, ``sources.md`` and ``sources.json`` into ``folder``."""
    found = figures(lines)
    judged = claims(lines, found)
    sections = [each for each in (*_sections(found), _claims(judged)) if each.rows]
    parts = ["# Where sequences and teachers come from\n"]
    if lines:
        facts = lines[-1]["facts"]
        parts += [_tables.about(facts, "python -m benchmarks.sources"), f"With transformers {facts['transformers']}.\n"]
    for each in sections:
        _tables.show(console, each.title, each.columns, each.rows)
        parts += [f"## {each.title}\n", _tables.markdown(each.columns, each.rows), f"{each.note}\n"]
    (folder / "sources.md").write_text("\n".join(parts), encoding="utf-8")
    values = {
        "facts": lines[-1]["facts"] if lines else None,
        **_plain(found),
        "claims": [asdict(each) for each in judged],
    }
    (folder / "sources.json").write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def _sections(found: Figures) -> Iterator[Section]:
    yield Section(
        "A step",
        ("contestant", "s/step", "ms/token", "ms/answer token", "peak MB", "above MB", "bytes/token on disk"),
        [
            [s.contestant, _spread(s.seconds), *_numbers(s[2:4], ".2f"), *_numbers(s[4:6], ",.0f"), _bytes(s[6])]
            for s in found.steps
            if s.seconds is not None or s.peak_mb is not None
        ],
        "In brackets: the fastest and the slowest round. Bytes are per trained token.",
    )
    yield Section(
        "Building a cache",
        ("cache", "ms/answer token", "and once, s", "bytes/token", "and once, MB"),
        [
            [c.contestant, _spread(c.build_ms_per_token), *_numbers([c.once_s], ".2f"), _bytes(c.bytes_per_token),
             *_numbers([c.head_mb], ",.0f")]
            for c in found.caches
        ],
        "Without loading the teacher, which the live teacher needs as well. Once: the teacher's head, the manifest.",
    )  # fmt: skip
    yield Section(
        f"{EPOCHS} epochs of the demo's {8 * STEPS_OF_EPOCH} rows, computed",
        ("teacher", "build s", "steps s", "total s", "of live", "pays from epoch"),
        [
            [e.contestant, *_numbers([e.build_s, e.steps_s, e.total_s], ",.0f"), *_numbers([e.of_live], ".2f"),
             "–" if e.pays_from is None else str(e.pays_from)]
            for e in found.epochs
        ],
        f"Computed, not run: build + {EPOCHS} × {STEPS_OF_EPOCH} × s/step, from the tables above. The next table "
        "has measured runs.",
    )  # fmt: skip
    yield _trainings(found)
    yield _writing(found)


def _trainings(found: Figures) -> Section:
    rows = [
        [t.contestant, *_numbers([t.computed_s, t.measured_s], ",.0f"),
         *_numbers([t.before["forward_kl"], t.after["forward_kl"]], ".3f"),
         *_numbers([t.after["perplexity"]], ",.1f"), *_numbers([t.after["top1_agreement"]], ".1%")]
        for t in found.trainings
    ]  # fmt: skip
    about = next(((t.steps, t.epochs) for t in found.trainings), (0, 0))
    return Section(
        "A short training from the same start",
        ("teacher", "computed s", "measured s", "KL before", "held-out forward KL", "perplexity", "agreement"),
        rows,
        f"{about[0]} steps in {about[1]} epochs; seconds include building the cache. Evaluated on held-out rows, "
        "always against the live teacher.",
    )


def _writing(found: Figures) -> Section:
    rows: list[list[str]] = []
    w = found.writing
    if w is not None:
        rows = [
            ["on-policy: s/step", _spread(w.fresh)],
            ["of which writing, s", *_numbers([w.writing_s], ".2f")],
            ["on-policy: ms/token", *_numbers([w.ms_per_token], ".2f")],
            ["tokens of a completion", *_numbers([w.completion_length], ".1f")],
            ["tokens written/s", _spread(w.tokens_per_second)],
            ["a step that replays, s", *_numbers([w.replayed], ".2f")],
            ["replay: s/step, computed", *_numbers([w.expected], ".2f")],
            [f"replay: s/step, measured with {w.measured_fresh:.0%} fresh", _spread(w.measured)],
        ]
    return Section(
        "The student writes",
        ("what", "value"),
        rows,
        "The untrained half of a model rarely generates EOS, so completions are nearly of maximum length. The computed "
        "step of replay assumes a quarter of fresh steps; the measured mean has the share that was drawn.",
    )


def _claims(judged: Sequence[Judged]) -> Section:
    return Section(
        "Targets",
        ("claim", "value", "min", "max", "target", ""),
        [
            [each.claim.what, *_numbers((each.claim.value, each.low, each.high), ",.3f"), *each.claim.cells()[-2:]]
            for each in judged
        ],
        "Ratios of times are medians of the quotients of the same batch in the same round.",
    )


def _plain(value: Any) -> Any:
    """A JSON-serialisable form, with the names of the fields."""
    if isinstance(value, Figures):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}  # type: ignore[attr-defined]
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _numbers(values: Sequence[float | None], form: str) -> list[str]:
    return ["–" if value is None else format(value, form) for value in values]


def _spread(value: Spread | None) -> str:
    if value is None:
        return "–"
    form = ".3f" if value.value < 10 else ",.0f"
    middle, low, high = (format(each, form) for each in value)
    return f"{middle} ({low}–{high})"


def _bytes(value: float) -> str:
    return f"{value:,.0f}" if value else "–"
