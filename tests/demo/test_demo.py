"""A short end-to-end run: the same path as `abkd demo`, with the real teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from abkd.output_dir import contents

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output directory of `abkd demo --quick`, and what it printed."""
    from abkd.demo.teacher import demo_teacher_path
    from abkd.errors import ConfigError

    try:
        demo_teacher_path()
    except ConfigError as error:
        pytest.skip(f"the demo's teacher is not here: {error}")
    output_dir = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "abkd", "demo", "--quick", "--output_dir", str(output_dir)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert run.returncode == 0, run.stdout + run.stderr
    return output_dir, run.stdout


def test_the_student_comes_much_closer_to_its_teacher(finished: tuple[Path, str]) -> None:
    rows = {row["name"]: row for row in json.loads((finished[0] / "demo.json").read_text())["rows"]}
    before, after, teacher = rows["student before"], rows["student after"], rows["teacher"]
    assert after["forward_kl"] < 0.6 * before["forward_kl"]
    assert after["perplexity"] < 0.5 * before["perplexity"]
    assert after["top1_agreement"] > before["top1_agreement"] + 0.05
    assert teacher["perplexity"] < after["perplexity"]
    assert after["parameters"] < 0.65 * teacher["parameters"]


def test_the_metrics_are_those_of_an_ordinary_run(finished: tuple[Path, str]) -> None:
    lines = (finished[0] / "student" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[0]["eval_forward_kl"] > records[-2]["eval_forward_kl"]
    assert any("student_entropy" in record for record in records)
    recipe = (finished[0] / "student" / "recipe.yaml").read_text()
    assert "stages((0.5, ForwardKL()), (0.5, AlphaBeta(alpha=0.2, beta=0.7)))" in recipe


def test_the_student_loads_without_abkd(finished: tuple[Path, str]) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; p = sys.argv[1];"
        "m, t = M.from_pretrained(p), T.from_pretrained(p);"
        "i = t.apply_chat_template([{'role': 'user', 'content': 'What does `len(x)` do?'}], add_generation_prompt=True,"
        " return_tensors='pt', return_dict=True);"
        "print(repr(t.decode(m.generate(**i, max_new_tokens=8, do_sample=False)[0, i['input_ids'].shape[1]:])));"
        "assert 'abkd' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code, str(finished[0] / "student")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip()) > 4


def test_table_and_report_show_it(finished: tuple[Path, str]) -> None:
    output_dir, printed = finished
    for word in ("student before", "student after", "teacher", "perplexity", "ROUGE-L", "report.html"):
        assert word in printed
    page = (output_dir / "report.html").read_text()
    assert "student after" in page
    assert "<svg" in page


def test_everything_it_wrote_can_be_replaced(finished: tuple[Path, str]) -> None:
    assert contents(finished[0]).foreign == []


def test_what_a_demo_did_not_write_is_left_alone(finished: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for flags in ([], ["--overwrite_output_dir"]):
        command = [sys.executable, "-m", "abkd", "demo", "--quick", "--output_dir", str(tmp_path), *flags]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 2
        assert (tmp_path / "thesis.txt").read_text() == "years of work"
