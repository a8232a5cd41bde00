"""The benchmark of classifiers with few filters: it runs, equivalent runs have equal losses, the tables are correct."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _training, vision
from benchmarks._training_report import judge, summarise
from benchmarks._vision_contestants import CONTESTANTS
from benchmarks._vision_pairs import make_pair
from benchmarks._vision_report import REPORT

pytestmark = pytest.mark.long  # whole rounds of a benchmark, in processes of their own

PRESENT = [name for name, each in CONTESTANTS.items() if each.absent() is None]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A round of all importable libraries, in a separate process."""
    return _training.measure(
        {"kind": "time", "benchmark": "vision", "pair": "tiny", "steps": 3, "contestants": PRESENT, "round": 0}
    )


def test_every_contestant_makes_every_step(measured: dict[str, Any]):
    ours = {name for name, each in CONTESTANTS.items() if each.package is None}
    assert ours <= measured["runs"].keys()
    assert {len(run["seconds"]) for run in measured["runs"].values()} == {3}


def test_same_images_same_loss(measured: dict[str, Any]):
    kinds: dict[str, dict[str, float]] = {}
    for name, run in measured["runs"].items():
        kind = CONTESTANTS[name].same_loss
        if kind is not None:
            kinds.setdefault(kind, {})[name] = run["loss"][0]
    assert {kind: len(losses) >= 2 for kind, losses in kinds.items()} == {"labels": True, "KD": True, "α-β": True}
    for losses in kinds.values():
        assert list(losses.values()) == pytest.approx([next(iter(losses.values()))] * len(losses), rel=1e-5), losses


@pytest.mark.parametrize("name", [name for name, each in CONTESTANTS.items() if each.package])
def test_a_peer_takes_part_or_says_why_not(name: str, measured: dict[str, Any]):
    why = CONTESTANTS[name].absent()
    if why:
        pytest.skip(why)
    assert name in measured["runs"]


def test_command_writes_tables_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any]):
    asked: list[dict[str, Any]] = []

    def fake(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job)
        if job["kind"] == "time":
            return measured
        return {"before": 2**30, "rise": 2**29, "read": "VmHWM", "gradients_and_state": 2**28, "first_step": 1.5}

    monkeypatch.setattr(_training, "measure", fake)
    options = ["--pairs", "tiny", "--rounds", "2", "--steps", "3", "--out", str(tmp_path)]
    vision.main([*options, "--at-most", "1"])
    assert len(asked) == 1
    vision.main(options)
    vision.main(options)
    assert len(asked) == 2 + len(PRESENT)  # nothing twice
    with (tmp_path / "vision.csv").open() as file:
        rows = {row["contestant"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set(PRESENT)
    assert float(rows["abkd ABKD"]["above_mb"]) == 256
    text = (tmp_path / "vision.md").read_text()
    assert "abkd ABKD / bare KD" in text
    assert all(f"Not run: {name}, " in text for name in CONTESTANTS.keys() - set(PRESENT))


def test_memory_of_one_contestant():
    result = _training.measure(
        {"kind": "memory", "benchmark": "vision", "pair": "tiny", "steps": 2, "contestants": ["abkd ABKD"]}
    )
    weights = sum(p.numel() for p in make_pair("tiny", 1).student.parameters())
    assert result["before"] > 0
    assert result["gradients_and_state"] == 2 * 4 * weights


def test_a_ratio_is_promised_of_long_steps_only():
    def record(scale: float) -> dict[str, Any]:
        seconds = {"abkd ABKD": [9.0, 1.02, 1.05, 1.04], "abkd KD": [9.0, 1.0, 1.0, 1.0]}
        runs = {name: {"seconds": [scale * s for s in each], "loss": [1.0]} for name, each in seconds.items()}
        job = {"kind": "time", "pair": "tiny", "contestants": list(seconds)}
        return {"job": job, "result": {"counts": [{"images": 4}] * 4, "runs": runs}}

    ((long, more),) = judge(REPORT.claims, [record(1.0)], summarise([record(1.0)]))
    assert (long.value, more, long.verdict) == (pytest.approx(1.04), pytest.approx(40.0), "missed")
    ((short, more),) = judge(REPORT.claims, [record(0.01)], summarise([record(0.01)]))
    assert (short.value, more, short.verdict) == (pytest.approx(1.04), pytest.approx(0.4), "–")
    row = summarise([record(1.0)])[1]
    assert (row.seconds, row.rates) == (pytest.approx(1.0), {"images": pytest.approx(4)})
