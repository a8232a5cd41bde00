"""Short runs of the two vision demos from the shell: digits with five objectives, and a small CLIP, base-to-new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from abkd.demo import clip, vision
from abkd.output_dir import contents

pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install 'abkd[demo]'")
pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]


def demo(directory: Path, flag: str) -> tuple[dict, str]:
    """The files and the output of the command."""
    command = [sys.executable, "-m", "abkd", "demo", flag, "--quick", "--output_dir", str(directory)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert run.returncode == 0, run.stdout + run.stderr
    assert contents(directory).foreign == []  # so that --overwrite_output_dir can replace it
    return json.loads((directory / "students" / "sweep.json").read_text()), run.stdout


def test_the_digits(tmp_path):
    found, said = demo(tmp_path / "out", "--vision")
    summary = {one["name"]: one["summary"]["accuracy"] for one in found["settings"]}
    assert list(summary) == list(vision.SETTINGS)
    assert found["seeds"] == list(vision.DEMO.quick.seeds)
    for name, numbers in summary.items():
        assert len(numbers["last"]["values"]) == len(vision.DEMO.quick.seeds)
        assert name.split(" (")[0] in said
        if name != "no teacher":
            assert numbers["last"]["mean"] < numbers["teacher"]["mean"]
    assert "±" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "ABDKD" in page
    taught = summary["KD (forward KL)"]["last"]["mean"]
    assert taught > summary["no teacher"]["last"]["mean"] + 0.02  # after three epochs; ten in the demo itself
    again = subprocess.run(
        [sys.executable, "-m", "abkd", "demo", "--vision", "--output_dir", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 2
    assert "is in use" in again.stderr


def test_base_to_new(tmp_path):
    found, said = demo(tmp_path / "out", "--clip")
    assert [one["name"] for one in found["settings"]] == list(clip.SETTINGS)
    for one in found["settings"]:
        for half in ("base_accuracy", "new_accuracy", "harmonic_mean"):
            numbers = one["summary"][half]
            assert 0.5 < numbers["last"]["mean"] <= 1.0  # chance is a fifth
            assert numbers["teacher"]["mean"] > 0.9
    assert "Transductive" in said
    assert "Harmonic mean" in said


def test_one_demo_at_a_time():
    run = subprocess.run([sys.executable, "-m", "abkd", "demo", "--vision", "--clip"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "choose one" in run.stderr
