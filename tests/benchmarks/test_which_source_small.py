"""The comparison of sources on tiny models: each is trained and evaluated once, and the tables show the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _which_source_report, which_source
from tiny_parts import make_chatml
from training_parts import llama


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("pair")
    for name, model in {"student": llama(0), "teacher": llama(7, layers=2)}.items():
        model.save_pretrained(directory / name)
        make_chatml().save_pretrained(directory / name)  # with a chat template: the demo's rows are conversations
    return ["--student", str(directory / "student"), "--teacher", str(directory / "teacher"), "--quick"]


@pytest.mark.long
def test_everyone_is_taught_and_examined_once(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    which_source.main([*pair, "--out", str(tmp_path)])
    told = json.loads((tmp_path / "which_source.json").read_text())
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in told["rows"]}
    assert list(rows) == ["teacher", "before", *which_source.WAYS]
    for name, row in rows.items():
        if name != "teacher":
            assert min(row[key] for key in ("forward_kl", "reverse_kl", "r_llh", "r_cvg")) > 0
        if name in which_source.WAYS:
            assert row["forward_kl"] != rows["before"]["forward_kl"]
            assert row["train_seconds"] > row["writing_seconds"]
            assert (row["writing_seconds"] > 0) == ("student" in name)
            assert (row["beforehand_seconds"] is not None) == ("cache" in name or "teacher's" in name)
    assert rows["student's text"]["on_policy_fraction"] == 1.0
    assert rows["dataset, hidden cache"]["forward_kl"] == pytest.approx(rows["dataset"]["forward_kl"], rel=1e-2)
    text = (tmp_path / "which_source.md").read_text()
    assert all(f"| {name} |" in text for name in rows)
    assert "Forward KL on the teacher's text wins coverage, R_cvg: " in text
    assert not [path for path in (tmp_path / "which_source").iterdir() if path.name in which_source.WAYS]

    def never(*_: Any) -> Any:
        raise AssertionError("measured twice")

    monkeypatch.setattr(which_source, "measure", never)
    capsys.readouterr()
    which_source.main([*pair, "--out", str(tmp_path)])
    assert "R_cvg" in capsys.readouterr().out


def test_who_wins_what_is_said() -> None:
    rows = {which_source.FORWARD: {"r_cvg": 1.0, "r_llh": 2.0}, which_source.REVERSE: {"r_cvg": 1.5, "r_llh": 2.5}}
    covers, stays = _which_source_report.directions(rows)
    assert covers.endswith("yes (1.00 against 1.50)")
    assert stays.endswith("no (2.50 against 2.00)")
