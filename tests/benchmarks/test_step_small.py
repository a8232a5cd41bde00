"""The step benchmark on tiny random models: it runs, all libraries compute the same loss, the tables are correct."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _training, step
from benchmarks._step_contestants import CONTESTANTS
from benchmarks._step_pairs import make_pair
from benchmarks._training_report import summarise

pytestmark = pytest.mark.long  # whole rounds of a benchmark, in processes of their own

PEERS = importlib.util.find_spec("trl") is not None
OURS = [name for name, each in CONTESTANTS.items() if each.package is None]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A round of all installed libraries, in a separate process."""
    names = [name for name, each in CONTESTANTS.items() if each.absent() is None]
    return _training.measure(
        {"kind": "time", "benchmark": "step", "pair": "tiny", "steps": 3, "contestants": names, "round": 0}
    )


def test_every_contestant_makes_every_step(measured: dict[str, Any]):
    assert set(OURS) <= measured["runs"].keys()
    assert {len(run["seconds"]) for run in measured["runs"].values()} == {3}


def test_same_rows_same_loss(measured: dict[str, Any]):
    kinds: dict[str, dict[str, float]] = {}
    for name, run in measured["runs"].items():
        kind = CONTESTANTS[name].same_loss
        if kind is not None:
            kinds.setdefault(kind, {})[name] = run["loss"][0]
    for losses in kinds.values():
        assert list(losses.values()) == pytest.approx([next(iter(losses.values()))] * len(losses), rel=1e-4), losses


@pytest.mark.skipif(not PEERS, reason="trl is not installed: pip install 'abkd[bench]'")
def test_peers_take_part(measured: dict[str, Any]):
    assert {"trl gkd forward KL", "trl gkd default", "trl stable loss"} <= measured["runs"].keys()


def test_counted_tokens(measured: dict[str, Any]):
    batches = make_pair("tiny", 3).batches(3)
    assert [tokens["all"] for tokens in measured["counts"]] == [
        sum(len(row["input_ids"]) for row in batch) for batch in batches
    ]
    assert all(tokens["trained"] < tokens["all"] <= tokens["padded"] for tokens in measured["counts"])


def test_command_writes_tables_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any]):
    asked: list[dict[str, Any]] = []

    def fake(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job)
        if job["kind"] == "time":
            return measured
        return {"before": 2**30, "rise": 2**29, "read": "VmHWM", "gradients_and_state": 2**28, "first_step": 1.5}

    monkeypatch.setattr(_training, "measure", fake)
    options = ["--pairs", "tiny", "--rounds", "2", "--steps", "3", "--out", str(tmp_path)]
    step.main([*options, "--at-most", "1"])
    assert len(asked) == 1
    step.main(options)
    step.main(options)
    assert len(asked) == 2 + len(measured["runs"])  # nothing twice
    with (tmp_path / "step.csv").open() as file:
        rows = {row["contestant"]: row for row in csv.DictReader(file)}
    assert rows.keys() == measured["runs"].keys()
    assert float(rows["abkd α-β"]["above_mb"]) == 256
    text = (tmp_path / "step.md").read_text()
    assert "abkd α-β / (SFT + teacher forward)" in text
    assert "<svg" in (tmp_path / "step_tiny.svg").read_text()


def test_memory_of_one_contestant():
    job = {"kind": "memory", "benchmark": "step", "pair": "tiny", "steps": 2, "contestants": ["abkd forward KL"]}
    result = _training.measure(job)
    assert result["before"] > 0
    assert result["gradients_and_state"] > 0
    assert json.dumps(result)


def test_median_over_rounds_mean_over_batches():
    def record(number: int, seconds: list[float]) -> dict[str, Any]:
        tokens = [{"all": 10, "trained": 4, "padded": 12}] * 3
        runs = {"sft": {"seconds": seconds, "loss": [1.0]}}
        job = {"kind": "time", "pair": "tiny", "contestants": ["sft"], "round": number}
        return {"job": job, "result": {"counts": tokens, "runs": runs}}

    records = [record(0, [9, 1, 2]), record(1, [9, 1, 2]), record(2, [9, 7, 4])]
    (row,) = summarise(records)
    assert row.seconds == 1.5
    assert row.rates is not None
    assert row.rates["all"] == pytest.approx(10 / 1.5)
