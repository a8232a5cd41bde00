"""The table of metrics is complete: whatever is logged is in it, and whatever is in it is logged or shown."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abkd import registry
from abkd.data.vocabulary import vocabulary_size
from abkd.evaluation import evaluate
from abkd.metrics import HELD_OUT, METRICS, OF_TEACHER, Metric, in_sentence, metric_of
from abkd.models.language import CausalRows
from abkd.registry import find_metric, held_out_metrics
from abkd.report import render_report
from abkd.report.results import result_of, sentences
from abkd.tasks import TASKS, Given, task_of
from abkd.teachers import TeacherContext, TopKCache, identity
from abkd.teachers.caches import build_cache
from image_parts import image_trainer, pictures
from training_parts import SHORT, config, llama, rows, teacher, tokenizer, trainer

OF_TRANSFORMERS = {"step", "epoch", "grad_norm", "learning_rate", "total_flos", "train_loss"}
OF_MODELS = {"parameters", "train_seconds"}  # columns of the report and of the demo
OF_ANSWERS = {"rouge_l_greedy", "rouge_l_sampled", "tokens_per_second"}  # abkd.evaluation.answer_metrics
SOURCE = "Mix(Adaptive(0.9), Replay(StudentSamples(), capacity=4, fresh=0.5), Dataset())"
CLIP = "zero-shot-image-classification"  # its evaluations: tests/trainer/test_clip_runs.py


def logged(made: Any) -> set[str]:
    made.train()
    lines = (Path(made.args.output_dir) / "metrics.jsonl").read_text().splitlines()
    keys = {key for line in lines for key in json.loads(line)} - OF_TRANSFORMERS
    return {key for key in keys if not key.endswith(("_runtime", "steps_per_second", "samples_per_second"))}


def of_a_cache(path: Path) -> set[str]:
    spec, args = TopKCache(k=4, path=str(path / "cache")), config(path)
    opened = task_of(args.task).open(Given(llama(0), teacher(), held_out=rows(3), tokenizer=tokenizer()), args)
    known = {**identity("somewhere/teacher", "main", tokenizer()), "teacher": "0123456789abcdef"}
    tokens = vocabulary_size(tokenizer())
    build_cache(spec, opened.held_out, lambda: CausalRows(teacher().eval()), identity=known, tokens=tokens)
    reader = spec.open(TeacherContext(opened.models.student, identity=known))
    cached = dataclasses.replace(opened, models=dataclasses.replace(opened.models, teacher=reader))
    return {f"{HELD_OUT}{name}" for name in evaluate(cached)} | reader.logs().keys()


@pytest.fixture(scope="module")
def by_task(tmp_path_factory) -> dict[str, set[str]]:
    """The keys that runs of a task log."""
    path = tmp_path_factory.mktemp("runs")
    options = {"max_steps": 4, "source": SOURCE, "eval_samples": 2, "ce_weight": 0.1, **SHORT}
    text = trainer(path / "text", eval_dataset=rows(3), **options)
    of_text = logged(text) | of_a_cache(path)
    images = image_trainer(path / "images", eval_dataset=pictures(3), max_steps=1)
    return {"text-generation": of_text, "image-classification": logged(images)}


def test_whatever_is_logged_is_in_the_table(by_task):
    assert [key for keys in by_task.values() for key in keys if metric_of(key) is None] == []


def test_whatever_is_in_the_table_is_reported(by_task):
    names = {metric_of(key).name for keys in by_task.values() for key in keys}
    names |= {metric.name for metric in TASKS[CLIP].metrics}
    assert METRICS.keys() - names == OF_MODELS | OF_ANSWERS


def test_a_task_reports_exactly_the_metrics_that_it_states(by_task):
    for task, keys in by_task.items():
        held_out = {key for key in keys if key.startswith(HELD_OUT) and not key.startswith(OF_TEACHER)}
        of_caches = {name for name in held_out_metrics(task) if name.endswith("_top_k")}
        assert {key.removeprefix(HELD_OUT) for key in held_out} | of_caches == held_out_metrics(task).keys()


def test_what_an_entry_refers_to_is_there():
    for metric in METRICS.values():
        assert {*metric.companions, *filter(None, [metric.part_of])} <= METRICS.keys()
        assert metric.better or metric.rank is metric.ideal is None
        assert not metric.requires or hasattr(config("unused"), metric.requires)


def test_a_metric_of_a_task_itself_is_known_everywhere(monkeypatch, tmp_path):
    errors = Metric("word_error_rate", "Word error rate", "%", "lower", scale=100.0, decimals=1, shown_from=1, rank=1)
    task = SimpleNamespace(fields=frozenset(), metrics=(METRICS["cross_entropy"], errors))
    monkeypatch.setattr(registry, "tasks", lambda: {"speech": task})
    assert list(held_out_metrics("speech"))[-2:] == ["cross_entropy", "word_error_rate"]
    assert find_metric("accuracy_of_nothing") is None
    events = [{"step": step, "eval_word_error_rate": value} for step, value in ((0, 0.9), (5, 0.2), (10, 0.3))]
    result = result_of(events)
    assert (result["last"]["word_error_rate"]["value"], result["best"]["word_error_rate"]["value"]) == (0.3, 0.2)
    assert sentences(result) == ["word error rate: last 30.0 % (step 10), best 20.0 % (step 5)"]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    assert "Word error rate<span>% ↓</span>" in render_report(tmp_path)


def test_what_nobody_knows_has_a_last_value_and_no_best():
    result = result_of([{"step": 1, "eval_my_accuracy": 0.5}, {"step": 2, "eval_my_accuracy": 0.4}])
    assert result["last"]["my_accuracy"]["value"] == 0.4
    assert result["best"] == {}


def test_values_are_shown_in_their_unit():
    assert METRICS["accuracy"].text(0.98765) == "98.77"
    assert METRICS["parameters"].text(1_234_567_890) == "1,234.6"
    assert METRICS["perplexity"].text(1234.5) == "1,234"
    assert METRICS["forward_kl_top_k"].heading == "nats, k+1 buckets"
    assert metric_of("eval_teacher_accuracy") is metric_of("eval_accuracy") is METRICS["accuracy"]
    assert metric_of("teacher_entropy") is METRICS["teacher_entropy"]
    assert metric_of("eval_nothing") is None
    assert [in_sentence(name) for name in ("Top-1 agreement", "ROUGE-L")] == ["top-1 agreement", "ROUGE-L"]
    assert METRICS["accuracy"].improves(0.5, 0.4)
    assert not METRICS["loss"].improves(0.5, 0.4)
    assert not METRICS["parameters"].improves(1, 2)


def test_the_table_loads_no_torch():
    code = "import sys, abkd.registry; print(*{'torch', 'transformers', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
