"""Sequences generated during training: by the student, by its teacher, from a buffer."""

from __future__ import annotations

import pytest

from abkd.data.order import PadToMultiple
from abkd.errors import ConfigError, OutputDirError
from training_parts import EVERY_THIRD, FROM_BUFFER, SHORT, gap, llama, rows, teacher, trainer, weights


def test_another_number_of_processes_or_another_source_is_refused(tmp_path):
    options = {**EVERY_THIRD, **SHORT}
    trainer(tmp_path, llama(0), **options).train()
    with pytest.raises(OutputDirError, match="saved with another source or number of processes"):
        trainer(tmp_path, llama(0), source=FROM_BUFFER, **options).train(resume_from_checkpoint=True)


def test_empty_context_and_the_student_as_teacher_give_nothing_to_learn(tmp_path):
    """Context distillation without a context, from the student itself: loss and gradient are 0."""
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
    made.loss.teacher = made.models.teacher
    made.train()
    assert "divergence" not in made.state.log_history[0]
    alone = trainer(tmp_path / "alone", llama(0), ce_weight=1.0, kd_weight=0.0, max_steps=2)
    alone.models = type(alone.models)(alone.models.student, None, alone.models.tokenizer, alone.models.classes)
    alone.loss.teacher = None
    alone.train()
    assert gap(made.model, alone.model) == 0.0


def test_what_each_thinks_of_the_others_text(tmp_path):
    """Two equal models generate the same text."""
    options = {"eval_dataset": rows(5), "eval_samples": 4, **SHORT}
    same = trainer(tmp_path, llama(0), teach=llama(0), **options).evaluate()
    assert same["eval_r_llh"] == pytest.approx(same["eval_r_cvg"], rel=1e-5)
    other = trainer(tmp_path, llama(0), **options).evaluate()
    assert other["eval_r_cvg"] != pytest.approx(other["eval_r_llh"], rel=1e-2)
    again = trainer(tmp_path, llama(0), **options).evaluate()
    assert (again["eval_r_llh"], again["eval_r_cvg"]) == (other["eval_r_llh"], other["eval_r_cvg"])


def test_a_row_that_only_fills_a_batch_is_not_answered(tmp_path):
    made = trainer(tmp_path, llama(0), source="StudentSamples()", **SHORT)
    evened = PadToMultiple(made.train_dataset, 8)
    assert len(evened) == 16
    assert evened[15]["is_padding"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "TopKCache(k=8)", "source": "StudentSamples()"}, "has yet to generate"),
        ({"teacher": "HiddenCache()", "lmbda": 0.5}, "has yet to generate"),
        ({"packing": True, "source": "StudentSamples()"}, "set packing: false"),
        ({"lmbda": 1.5}, "lmbda must be between 0"),
        ({"lmbda": 0.5, "source": "StudentSamples()"}, "keep either them or source"),
        ({"source": "ForwardKL()"}, "source must be a source"),
        ({"terms": "[ForwardKL()]"}, "terms must be a list of terms"),
        ({"terms": "[Term(SkewForwardKL(0.1), sequence_mixture=True)]", "kd_temperature": 2.0}, "temperature 1"),
        ({"max_completion_length": 0}, "must be >= 1"),
        ({"terms": "[Term(ForwardKL(), origin='teacher')]", "lmbda": 1.0}, "nothing would be learned"),
        ({"teacher": "Ensemble()"}, "needs at least 2"),
        ({"teacher": "EMA()"}, "takes 0 models, got 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, llama(0), **options)


def test_an_ensemble_teaches(tmp_path):
    members = [teacher(), llama(9, width=48, layers=2, sharpness=6.0)]
    made = trainer(tmp_path, llama(0), teach=members, teacher="Ensemble()", max_steps=2, eval_dataset=rows(3))
    made.train()
    evaluated, first, *_ = made.state.log_history
    assert evaluated["eval_forward_kl"] > 0
    assert first["divergence"] > 0
    assert made.evaluate()["eval_forward_kl"] > 0
