"""Sequences that are written while a run trains: by the student, by its teacher, from a buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import EVERY_THIRD, StopAfter, lora
from test_splits import relative

from abkd import ForwardKL
from abkd.data import prompt_of, with_completion
from abkd.errors import ConfigError, OutputDirError
from abkd.generation import Sampling, write_completions
from abkd.trainer._order import Evened
from training_parts import gap, gpt2, llama, rows, teacher, tokenizer, trainer, weights

SHORT = {"max_completion_length": 6, "learning_rate": 3e-3}
FROM_BUFFER = "Replay(StudentSamples(), capacity=5, fresh=anneal(1.0, 0.0))"
SOURCES: dict[str, dict[str, Any]] = {
    "on-policy": {"source": "StudentSamples(temperature=0.9, top_p=0.95)"},
    "half": {"lmbda": 0.5, "gradient_accumulation_steps": 2},
    "several": {"source": "StudentSamples()", "num_generations": 2},
    "replay": {"source": FROM_BUFFER, "gradient_accumulation_steps": 2},
    "adaptive": {
        "source": f"Mix(Adaptive(start=0.4, step=0.3, tolerance=0.0), {FROM_BUFFER}, Dataset())",
        "eval_dataset": rows(3),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 0.2,  # so that the loss rises now and then
    },
    "teacher's and student's": {
        "source": "Union(TeacherSamples(), StudentSamples())",
        "terms": "[Term(SkewForwardKL(0.5), on='teacher', weight=0.5, posterior=True), "
        "Term(SkewReverseKL(0.5), on='student', weight=anneal(0.5, 1.0), posterior=True)]",
    },
    "stages": {"source": "stages((0.3, Dataset()), (0.7, StudentSamples()))"},
    "privileged": {"source": "Privileged(StudentSamples(), context='Say bye. ')"},
    "average of the student": {"teacher": "EMA(decay=0.6)", "source": "Privileged(Dataset(), context='bye ')"},
    "snapshot": {"teacher": "Snapshot(every=2)", "source": "Privileged(StudentSamples(), context='bye ')"},
}


def build(path: Path, student: Any, options: dict[str, Any], **more: Any) -> Any:
    options = {**SHORT, **options, **more}
    made_of_student = str(options.get("teacher", "")).startswith(("EMA", "Snapshot", "AdapterOff"))
    if made_of_student:
        from abkd import DistillTrainer
        from training_parts import config

        own = {k: options.pop(k) for k in ("eval_dataset", "callbacks", "peft_config") if k in options}
        return DistillTrainer(
            student, None, config(path, **options), train_dataset=rows(), processing_class=tokenizer(), **own
        )
    return trainer(path, student, **options)


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("case", SOURCES)
def test_resume_is_exact(tmp_path, case, family):
    """Buffers, thresholds and averages are in the checkpoint; coins and samples are functions of the step."""
    options = {**EVERY_THIRD, **SOURCES[case]}
    start = family(0)
    before = weights(start)
    whole = build(tmp_path / "whole", start, options)
    whole.train()
    assert gap(whole.model, before) > 0.0
    build(tmp_path / "parts", family(0), options, callbacks=[StopAfter(3)]).train()
    torch.manual_seed(99)
    resumed = build(tmp_path / "parts", family(5), options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert gap(whole.model, resumed.model) == 0.0
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()][:-1]
        for name in ("whole", "parts")
    )
    for mine, theirs in zip(first[3:], second[3:], strict=True):
        for name in {"loss", "divergence", "completion_length", "mix_share"} & mine.keys():
            assert mine[name] == theirs[name], (mine["step"], name)


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_the_adapters_base_teaches_and_resumes(tmp_path):
    options = {**EVERY_THIRD, "teacher": "AdapterOff()", "source": "Privileged(StudentSamples(), context='bye ')"}
    states = []
    for name, stop in (("whole", []), ("parts", [StopAfter(3)])):
        build(tmp_path / name, llama(0), options, peft_config=lora(), callbacks=stop).train()
    for name in ("whole", "parts"):
        again = build(tmp_path / name, llama(0), options, peft_config=lora())
        again.train(resume_from_checkpoint=True)
        states.append(weights(again.model))
    assert gap(*states) == 0.0


def test_another_number_of_processes_or_another_source_is_refused(tmp_path):
    options = {**EVERY_THIRD, **SHORT}
    trainer(tmp_path, llama(0), **options).train()
    with pytest.raises(OutputDirError, match="made with another source or by another number of processes"):
        trainer(tmp_path, llama(0), source=FROM_BUFFER, **options).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("source", ["StudentSamples(temperature=0)", "Union(Dataset(), StudentSamples(temperature=0))"])
def test_given_the_same_text_a_step_is_the_same_however_it_is_split(tmp_path, source):
    """Greedy text is a function of the weights alone, so even what is written is the same."""
    runs = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        made = trainer(
            tmp_path / str(batch),
            llama(0),
            source=source,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0.0,
            max_steps=3,
            **{**SHORT, "learning_rate": 0.05},
        )
        made.train()
        runs.append(weights(made.model))
    assert max(relative(runs[0], other) for other in runs[1:]) < 3e-6


def test_a_step_on_the_students_text_is_a_step_on_that_text_as_data(tmp_path):
    """And its loss is divided by the tokens that were generated, not by those of the data."""
    options = {**SHORT, "max_steps": 1, "per_device_train_batch_size": 12, "divergence": ForwardKL()}
    on_policy = trainer(tmp_path / "a", llama(0), source="StudentSamples(temperature=0)", **options)
    data = [on_policy.train_dataset[i] for i in range(12)]
    written = write_completions(
        llama(0), tokenizer(), [prompt_of(row) for row in data], Sampling(temperature=0), max_new_tokens=6, classes=340
    )
    tokens = sum(len(completion.ids) for completion in written)
    assert tokens != sum(sum(row["trained"]) for row in data)
    same = [with_completion(row, w.ids, 0, privileged=False) for row, w in zip(data, written, strict=True)]
    from abkd.data import TokenizedDataset

    given = trainer(tmp_path / "b", llama(0), data=TokenizedDataset(same), **options)
    seen: list[float] = []
    original = on_policy.task.losses

    def losses(batch, progress, totals):
        seen.append(float(totals.rows))
        return original(batch, progress, totals)

    on_policy.task.losses = losses
    for each in (on_policy, given):
        each.train()
    assert seen == [tokens]
    assert gap(on_policy.model, given.model) < 1e-6
    assert on_policy.state.log_history[0]["loss"] == pytest.approx(given.state.log_history[0]["loss"], rel=1e-6)


def test_where_the_padding_is_changes_nothing(tmp_path):
    states = []
    for side in ("left", "right"):
        made = trainer(tmp_path / side, gpt2(0).eval(), source="StudentSamples(temperature=0)", max_steps=2, **SHORT)
        made.model.config.resid_pdrop = made.model.config.embd_pdrop = made.model.config.attn_pdrop = 0.0
        for module in made.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        made.collator = type(made.collator)(made.collator.pad_token_id, padding_side=side)
        made.train()
        states.append(weights(made.model))
    assert gap(*states) < 1e-5


def test_empty_context_and_the_student_as_teacher_give_nothing_to_learn(tmp_path):
    """Context distillation without a context, from the student itself: no loss, no gradient."""
    made = trainer(
        tmp_path, llama(0), teach=llama(0), source="Privileged(StudentSamples(), context='')", max_steps=2, **SHORT
    )
    before = weights(made.model)
    made.train()
    assert all(abs(record["loss"]) < 1e-9 for record in made.state.log_history if "loss" in record)
    assert all(record["grad_norm"] < 1e-5 for record in made.state.log_history if "grad_norm" in record)
    with_context = trainer(
        tmp_path / "c", llama(0), teach=llama(0), source="Privileged(Dataset(), context='bye bye ')", max_steps=1
    )
    with_context.train()
    assert with_context.state.log_history[0]["loss"] > 1e-3
    assert before.keys() == weights(made.model).keys()


def test_what_is_written_is_counted_and_logged(tmp_path):
    made = trainer(tmp_path, llama(0), source="StudentSamples()", max_steps=2, **SHORT)
    made.train()
    record = made.state.log_history[0]
    assert record["on_policy_fraction"] == 1.0
    assert 1 <= record["completion_length"] <= 6
    assert 0 <= record["clipped_fraction"] <= 1
    assert record["generated_tokens_per_second"] > 0
    assert "divergence" in record


def test_labels_alone_ask_no_teacher(tmp_path):
    made = trainer(tmp_path, llama(0), ce_weight=1.0, kd_weight=0.0, max_steps=2)

    def never(view):
        raise AssertionError("the teacher was asked")

    made.models.teacher.__class__ = type("Silent", (type(made.models.teacher),), {"__call__": never})
    made.task.teacher = made.models.teacher
    made.train()
    assert "divergence" not in made.state.log_history[0]
    alone = trainer(tmp_path / "alone", llama(0), ce_weight=1.0, kd_weight=0.0, max_steps=2)
    alone.models = type(alone.models)(alone.models.student, None, alone.models.tokenizer, alone.models.classes)
    alone.task.teacher = None
    alone.train()
    assert gap(made.model, alone.model) == 0.0


def test_what_each_thinks_of_the_others_text(tmp_path):
    """Of two equal models each writes what the other writes."""
    options = {"eval_dataset": rows(5), "eval_samples": 4, **SHORT}
    same = trainer(tmp_path, llama(0), teach=llama(0), **options).evaluate()
    assert same["eval_r_llh"] == pytest.approx(same["eval_r_cvg"], rel=1e-5)
    other = trainer(tmp_path, llama(0), **options).evaluate()
    assert other["eval_r_cvg"] != pytest.approx(other["eval_r_llh"], rel=1e-2)
    again = trainer(tmp_path, llama(0), **options).evaluate()
    assert (again["eval_r_llh"], again["eval_r_cvg"]) == (other["eval_r_llh"], other["eval_r_cvg"])


def test_a_row_that_only_fills_a_batch_is_not_answered(tmp_path):
    made = trainer(tmp_path, llama(0), source="StudentSamples()", **SHORT)
    evened = Evened(made.train_dataset, 8)
    assert len(evened) == 16
    assert evened[15]["empty"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "TopKCache(k=8)", "source": "StudentSamples()"}, "the student's is not yet written"),
        ({"teacher": "HiddenCache()", "lmbda": 0.5}, "the student's is not yet written"),
        ({"packing": True, "source": "StudentSamples()"}, "set packing: false"),
        ({"lmbda": 1.5}, "from 0 to 1"),
        ({"lmbda": 0.5, "source": "StudentSamples()"}, "give one or the other"),
        ({"source": "ForwardKL()"}, "source must be one"),
        ({"terms": "[ForwardKL()]"}, "terms must be a list of terms"),
        ({"terms": "[Term(SkewForwardKL(0.1), posterior=True)]", "kd_temperature": 2.0}, "temperature 1"),
        ({"max_completion_length": 0}, "at least 1"),
        ({"terms": "[Term(ForwardKL(), on='teacher')]", "lmbda": 1.0}, "nothing would be learned"),
        ({"teacher": "Ensemble()"}, "needs at least 2"),
        ({"teacher": "EMA()"}, "needs 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, llama(0), **options)


def test_an_ensemble_teaches(tmp_path):
    members = [teacher(), llama(9, width=48, layers=2, sharpness=6.0)]
    made = trainer(tmp_path, llama(0), teach=members, teacher="Ensemble()", max_steps=2, eval_dataset=rows(3))
    made.train()
    assert made.state.log_history[0]["divergence"] > 0
    assert made.evaluate()["eval_forward_kl"] > 0
