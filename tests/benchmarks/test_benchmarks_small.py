"""The benchmark scripts on tiny shapes: all jobs run, all results are correct, finished jobs are not repeated."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # whole rounds of a benchmark, in processes of their own

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4


def run(script: str, out: Path) -> str:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--tiny", "--rounds", "2", "--threads", "1"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines(folder: Path) -> list[str]:
    return (folder / "loss.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def loss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("loss")
    return folder, run("loss", folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "loss.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_and_pictures_are_written(loss: tuple[Path, str]) -> None:
    folder, shown = loss
    for name in ("loss.md", "loss.csv", "loss.json", "bars.svg", "bars.png"):
        assert (folder / name).stat().st_size > 100, name
    assert list(folder.glob("curve-*.svg"))
    assert "## Targets" in (folder / "loss.md").read_text()
    assert "textbook" in shown


def test_everyone_agrees_with_the_reference(loss: tuple[Path, str]) -> None:
    table = rows(loss[0])
    assert {"floor", "abkd", "abkd eager", "textbook"} <= {row["contestant"] for row in table if row["ms"]}
    for row in table:
        if "installed" in row["note"] or "imported" in row["note"]:
            print(row["contestant"], "left out:", row["note"])
            continue
        assert row["note"] == "", row
        assert float(row["ms"]) > 0
        if row["contestant"] != "floor":
            assert max(float(row[f"error_{what}"]) for what in ("loss", "hidden", "head")) <= TOLERANCE, row


def test_memory_is_measured_in_a_process_of_its_own(loss: tuple[Path, str]) -> None:
    measured = [row for row in rows(loss[0]) if row["peak_mb"]]
    assert {row["contestant"] for row in measured} == {"abkd", "textbook"}
    jobs = [json.loads(line)["job"] for line in lines(loss[0])]
    assert len([job for job in jobs if job["do"] == "memory"]) == len(measured)


def test_a_finished_measurement_is_not_repeated(loss: tuple[Path, str]) -> None:
    folder, _ = loss
    before = lines(folder)
    lost = next(line for line in before if '"memory"' in line and "textbook" in line)
    kept = [line for line in before if line != lost]
    (folder / "loss.jsonl").write_text("".join(f"{line}\n" for line in kept))
    run("loss", folder)
    *same, again = lines(folder)
    assert same == kept
    assert json.loads(again)["job"] == json.loads(lost)["job"]


def test_a_measurement_tells_where_it_was_made(loss: tuple[Path, str]) -> None:
    for line in map(json.loads, lines(loss[0])):
        assert line["facts"]["threads"] == 1
        assert {"cpu", "cores", "machine", "torch", "python"} <= line["facts"].keys()


def test_scaling(tmp_path: Path) -> None:
    run("scaling", tmp_path)
    with (tmp_path / "scaling.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["series"] for row in found] == ["rows", "memory budget (MB)"]
    assert all(float(row["ms"]) > 0 and float(row["tensors_mb"]) > 0 and row["peak_mb"] for row in found)
    for name in ("scaling.md", "time-rows.svg", "time-memory.png"):
        assert (tmp_path / name).stat().st_size > 100, name
