"""Missing settings have working defaults; wrong ones raise a message with the way out, before anything is loaded."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from abkd import DistillTrainer
from abkd.cli._app import app
from abkd.errors import ConfigError
from training_parts import config, gap, llama, rows, save_models, teacher, tokenizer


def test_models_by_name_and_no_arguments(tmp_path, monkeypatch):
    save_models(tmp_path, student=llama(0), teacher=teacher())
    monkeypatch.chdir(tmp_path)
    made = DistillTrainer(model="student", teacher_model="teacher", train_dataset=rows(3))
    assert made.args.output_dir == "distilled"
    assert gap(made.model, llama(0)) == 0
    assert gap(made.models.teacher.model, teacher()) == 0
    assert made.models.teacher.model.dtype == torch.float32
    options = config(tmp_path / "other", teacher_model_init_kwargs='{"dtype": "bfloat16"}')
    made = DistillTrainer("student", "teacher", options, train_dataset=rows(3))
    assert made.models.teacher.model.dtype == torch.bfloat16


def test_a_dtype_is_not_needed(tmp_path):
    save_models(tmp_path, teacher=teacher())
    options = config(tmp_path / "out", teacher_model_init_kwargs={"attn_implementation": "eager"})
    teach = str(tmp_path / "teacher")
    made = DistillTrainer(llama(0), teach, options, train_dataset=rows(3), processing_class=tokenizer())
    assert made.models.teacher.model.dtype == torch.float32
    assert made.models.teacher.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"divergence": "ForwardKl()"}, "ForwardKL"),
        ({"kd_temperature": 0.0}, "kd_temperature"),
        ({"lmbda": 2}, "lmbda must be between 0"),
        ({"teacher_model_init_kwargs": "bfloat16"}, "must be a mapping"),
        ({"kd_ratio": -0.1}, "kd_ratio"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named_with_the_way_out(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, **options)


def test_the_command_ends_with_2_and_one_paragraph(tmp_path):
    words = ["--model_name_or_path", "student", "--teacher_model_name_or_path", "teacher", "--train_file", "none.jsonl"]
    ended = CliRunner().invoke(app, ["distill", *words, "--output_dir", str(tmp_path / "run"), "--learning_rat", "1"])
    assert ended.exit_code == 2
    assert "learning_rate" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "run").exists()
