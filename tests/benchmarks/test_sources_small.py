"""The benchmark of sources on tiny random models: it runs, equivalent runs have equal losses, tables are correct."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _sources_claims, _sources_figures, sources
from benchmarks._machine import ROOT
from benchmarks._sources_contestants import (
    CACHES,
    CONTESTANTS,
    HALF,
    HIDDEN,
    LABELS,
    LIVE,
    ON_POLICY,
    REPLAY,
    SFT,
    TOP_K,
)
from benchmarks._training_report import steps_of

pytestmark = pytest.mark.long  # whole rounds of a benchmark, in processes of their own
SIZE = sources.Size(steps=3, written=2, replayed=9, epochs=2, held_out=4)
JOBS = {(job["kind"], job.get("contestant")): job for job in sources.jobs("tiny", 1, SIZE)}
_ALL = """
import json, sys
from benchmarks._sources_worker import main
for job in json.loads(sys.argv[1]):
    print(json.dumps(main(job)))
"""


@pytest.fixture(scope="module")
def measured() -> dict[Any, dict[str, Any]]:
    """One job of each kind; one process for all of them, since starting takes longer than the rest."""
    chosen = [("time", None), ("write", None), ("generate", None), ("memory", TOP_K), ("train", HIDDEN)]
    command = [sys.executable, "-c", _ALL, json.dumps([JOBS[key] for key in chosen])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(chosen, map(json.loads, done.stdout.splitlines()), strict=True))


def test_same_rows_same_loss(measured: dict[Any, dict[str, Any]]):
    runs = measured["time", None]["runs"]
    assert runs.keys() == CONTESTANTS.keys()
    assert {len(run["seconds"]) for run in runs.values()} == {SIZE.steps}
    loss = {name: run["loss"][0] for name, run in runs.items()}
    assert loss[LABELS] == pytest.approx(loss[SFT], rel=1e-5)
    assert loss[HIDDEN] == pytest.approx(loss[LIVE], rel=1e-5)
    assert loss[HALF] == pytest.approx(loss[LIVE], rel=2e-2)
    assert 0 < loss[TOP_K] < loss[LIVE]  # k of more classes: a lower bound


def test_what_caches_take(measured: dict[Any, dict[str, Any]]):
    built = measured["time", None]["built"]
    assert built.keys() == CACHES.keys()
    assert built[TOP_K]["bytes_per_token"] < 300
    assert built[HALF]["bytes_per_token"] < 0.6 * built[HIDDEN]["bytes_per_token"]
    rows = sum(batch["trained"] for batch in measured["time", None]["counts"])
    assert {each["rows"] for each in built.values()} == {rows}


def test_student_writes_and_replays(measured: dict[Any, dict[str, Any]]):
    runs = measured["write", None]["runs"]
    assert all(log["on_policy_fraction"] == 1 for run in runs.values() for log in run["logs"])
    assert len(runs[ON_POLICY]["logs"]) == SIZE.written
    replayed = [log["replayed_fraction"] for log in runs[REPLAY]["logs"]]
    assert len(replayed) == SIZE.replayed
    assert replayed[0] == 0
    assert 1 in replayed


def test_held_out_rows_are_judged(measured: dict[Any, dict[str, Any]]):
    result = measured["train", HIDDEN]
    assert 0 < result["after"]["forward_kl"] < result["before"]["forward_kl"]
    assert measured["memory", TOP_K]["before"] > 0


def test_command_writes_tables_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[Any, dict[str, Any]]
):
    asked: list[str] = []
    of_kind = {kind: result for (kind, _), result in measured.items()}

    def fake(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job["kind"])
        return of_kind[job["kind"]]

    monkeypatch.setattr(sources, "measure", fake)
    monkeypatch.setattr(sources, "QUICK", SIZE)
    options = ["--pair", "tiny", "--quick", "--out", str(tmp_path)]
    sources.main(options)
    assert len(asked) == len(JOBS)
    sources.main(options)
    assert len(asked) == len(JOBS)  # nothing twice
    told = json.loads((tmp_path / "sources.json").read_text())
    claims = {claim["claim"]["what"]: claim for claim in told["claims"]}
    assert {f"{TOP_K} / {SFT}", f"{HIDDEN} / {SFT}", f"{HIDDEN} / {LABELS}"} <= claims.keys()
    assert {each["contestant"] for each in told["trainings"]} == {LIVE, *CACHES}
    text = (tmp_path / "sources.md").read_text()
    assert all(f"| {name} |" in text for name in CONTESTANTS)
    assert "computed" in text
    assert "met" in text


def test_ten_epochs_are_what_is_measured_times_ten():
    step = {LIVE: 3.0, TOP_K: 2.0}
    build = _sources_figures.Spread(10.0, 10.0, 10.0)
    cache = _sources_figures.Cache(TOP_K, build, once_s=1.0, bytes_per_token=268.0, head_mb=0.0)
    costs = _sources_figures._Costs(step, {TOP_K: cache}, tokens=250.0)
    live, cached = (_sources_figures._epochs(name, costs) for name in (LIVE, TOP_K))
    assert (live.build_s, live.total_s, live.pays_from) == (0.0, 1200.0, None)
    assert (cached.build_s, cached.total_s) == (101.0, 901.0)
    assert cached.pays_from == 3  # 40 s are saved in an epoch
    assert cached.of_live == pytest.approx(901 / 1200)


def test_rounds_of_a_machine_that_slows_down():
    timed = [{"runs": {"a": {"seconds": [9, 2 * k, 4 * k]}, "b": {"seconds": [9, k, 2 * k]}}} for k in (1, 1, 5)]
    quotient = _sources_claims._quotient(timed, "a", "b")
    assert quotient == (2, 2, 2)
    assert _sources_figures._spread(steps_of(timed, "a")) == (3, 3, 15)
