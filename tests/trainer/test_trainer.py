"""The trainer's interface: its inputs, what it does not change, and what it saves."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from abkd import DistillTrainer
from abkd.data import prepare_dataset
from abkd.errors import ConfigError, DataError, VocabularyError
from abkd.ops import Head
from abkd.tasks._start import padding
from tiny_parts import make_llama
from training_parts import CHECKPOINTING, config, gap, gpt2, llama, lora, rows, teacher, tokenizer, trainer, weights


def fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- the teacher ----


def test_the_teacher_is_only_read(tmp_path):
    teach = teacher().train()
    before = fingerprint(teach)
    made = trainer(tmp_path, teach=teach, save_strategy="steps", save_steps=3, eval_dataset=rows(3))
    made.train()
    made.evaluate()
    made.save_model()
    assert fingerprint(teach) == before
    assert not teach.training
    assert not any(parameter.requires_grad for parameter in teach.parameters())
    assert all(parameter.grad is None for parameter in teach.parameters())
    mine = {id(parameter) for parameter in made.model.parameters()}
    assert not any(id(parameter) in mine for parameter in teach.parameters())
    assert made.model.state_dict().keys() == llama(0).state_dict().keys()
    largest = max(path.stat().st_size for path in tmp_path.rglob("model.safetensors"))
    assert largest < 1.2 * sum(value.nbytes for value in weights(made.model).values())


def test_one_model_cannot_teach_itself(tmp_path):
    model = llama(0)
    with pytest.raises(ConfigError, match="share weights"):
        trainer(tmp_path, model, teach=model)
    other = llama(1)
    other.model.embed_tokens = model.model.embed_tokens
    with pytest.raises(ConfigError, match="load the model twice"):
        trainer(tmp_path, model, teach=other)


def test_hooks_of_a_teacher_run_as_when_it_is_called(tmp_path):
    """Even those that its backbone and head alone would not run."""
    hooked = teacher()
    hooked.register_forward_hook(lambda _, __, output: setattr(output, "logits", 2 * output.logits))
    doubled = teacher()
    with torch.no_grad():
        doubled.lm_head.weight.mul_(2)
    found = [
        trainer(tmp_path / str(i), teach=each, eval_dataset=rows(3)).evaluate()["eval_forward_kl"]
        for i, each in enumerate((hooked, doubled, teacher()))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-2)


def test_hooks_of_a_student_are_refused_also_under_adapters(tmp_path):
    for options in ({}, {"peft_config": lora()}):
        model = llama(0)
        model.register_forward_hook(print)
        with pytest.raises(ConfigError, match="CausalLM has hooks on itself"):
            trainer(tmp_path, model, **options)
    assert not list(tmp_path.iterdir())


# ---- what is saved ----


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(2, 12)[None]).logits


def in_bfloat16(model: Any) -> Any:
    """As transformers loads it: weights only, while buffers (rotary frequencies) keep their dtype."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: llama(0),
        lambda: llama(0, tie_word_embeddings=True),
        lambda: gpt2(0),
        lambda: in_bfloat16(llama(0, sharpness=1.0)),
    ],
    ids=["llama", "tied llama", "gpt2", "bfloat16"],
)
def test_the_student_is_saved_in_the_form_it_came(tmp_path, make):
    student = make()
    before, tied = weights(student), student.config.tie_word_embeddings
    made = trainer(tmp_path, student, max_steps=2)
    made.train()
    made.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert type(saved) is type(student)
    assert saved.dtype == student.dtype
    assert saved.config.tie_word_embeddings == tied
    assert (saved.get_input_embeddings().weight is saved.get_output_embeddings().weight) == tied
    assert gap(before, saved) > 0
    assert gap(student, saved) == 0
    assert torch.equal(logits(student), logits(saved))
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer().get_vocab()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_saved_as_adapters(tmp_path):
    from peft import AutoPeftModelForCausalLM, LoraConfig

    base = llama(0)
    base.save_pretrained(tmp_path / "base")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    made = trainer(tmp_path / "run", student, peft_config=lora, max_steps=3)
    made.train()
    made.save_model()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    saved = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(made.model), logits(saved))
    assert not torch.equal(logits(base), logits(saved))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_student_without_anything_to_train_is_refused(tmp_path):
    from peft import PeftModel, get_peft_model

    get_peft_model(llama(0), lora()).save_pretrained(tmp_path / "adapter")
    for model in (llama(0).requires_grad_(False), PeftModel.from_pretrained(llama(0), tmp_path / "adapter")):
        with pytest.raises(ConfigError, match=r"has nothing to train: all its \d+ parameters are frozen.*is_trainable"):
            trainer(tmp_path / "run", model)
    assert not (tmp_path / "run").exists()
    trainer(tmp_path / "run", llama(0).requires_grad_(False), peft_config=lora())  # which has those to train


# ---- inputs ----


def test_other_tokenizers_are_refused(tmp_path):
    for name, model, words in (("student", llama(0), tokenizer()), ("teacher", teacher(), make_llama())):
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    with pytest.raises(VocabularyError, match="the student's and the teacher's tokenizers differ"):
        DistillTrainer(str(tmp_path / "student"), str(tmp_path / "teacher"), config(tmp_path), train_dataset=rows(3))


def test_no_model_where_one_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer in"):
        DistillTrainer(str(tmp_path), teacher(), config(tmp_path), train_dataset=rows(3))


@pytest.mark.parametrize("form", ["list", "datasets", "tokenised", "file"])
def test_the_same_rows_in_every_form(tmp_path, form):
    data: Any = rows(5)
    if form == "datasets":
        data = datasets.Dataset.from_list(rows(5))
    elif form == "tokenised":
        data = prepare_dataset(rows(5), tokenizer(), max_length=64)
    elif form == "file":
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(5)))
    made = trainer(tmp_path / "run", data=data)
    assert made.train_dataset.fingerprint == prepare_dataset(rows(5), tokenizer(), max_length=64).fingerprint


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="lm_coef > 0 needs plain text"):
        trainer(tmp_path, lm_coef=0.5, pretrain_chunks=None)
    with pytest.raises(DataError):
        trainer(tmp_path, data=[])
    with pytest.raises(DataError, match="3 of 3 rows cannot be used"):
        trainer(tmp_path, data=rows(3), max_length=4)


# ---- training ----


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"packing": True}, {CHECKPOINTING: True}], ids=str)
def test_it_learns(tmp_path, options):
    """With a teacher of its own size, the student gets close to it."""
    made = trainer(
        tmp_path,
        teach=llama(4, sharpness=4.0),
        eval_dataset=rows(12),
        max_steps=40,
        per_device_train_batch_size=4,
        learning_rate=0.02,
        logging_steps=20,
        divergence="stages((0.5, ForwardKL()), (0.5, AlphaBeta(0.2, 0.7)))",
        **options,
    )
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert after["eval_forward_kl"] < 0.2 * before["eval_forward_kl"]
    assert after["eval_top1_agreement"] > before["eval_top1_agreement"] + 0.3


def test_gradient_checkpointing_changes_nothing(tmp_path):
    models = []
    for on in (False, True):
        made = trainer(tmp_path / str(on), gpt2(0), **{CHECKPOINTING: on})
        made.train()
        models.append(made.model)
    assert gap(*models) == 0.0


def test_the_plan_of_the_run_directory_is_used_again(tmp_path):
    plan = {"rows_per_chunk": 3, "compiled": False}
    (tmp_path / "run.json").write_text(json.dumps({"plan": plan}))
    assert trainer(tmp_path).plan.rows_per_chunk == 3
    assert trainer(Path(tmp_path) / "other", memory_budget_mb=1.0).plan.rows_per_chunk == 2**20 // (8 * 340) // 32 * 32


def test_a_plan_that_memory_made_smaller_is_the_one_to_resume_with(tmp_path, monkeypatch):
    write = Head._write

    def limited(self, hidden, out):
        if len(hidden) > 4:
            raise torch.OutOfMemoryError("no room")
        return write(self, hidden, out)

    plan = {"rows_per_chunk": 64, "compiled": False}
    (tmp_path / "run.json").write_text(json.dumps({"plan": plan}))
    monkeypatch.setattr(Head, "_write", limited)
    made = trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    made.train()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["plan"] == plan | {"rows_per_chunk": 4}
    assert record["seed"] == made.args.seed  # the rest of the record is kept
    assert trainer(tmp_path).plan.rows_per_chunk == 4


def test_much_padding_is_said_with_the_way_out(tmp_path, caplog):
    lengths = [10, 100] * 50
    assert padding(lengths, 2) == pytest.approx(1 - 55 / 77.5, abs=0.08)
    assert padding([7] * 100, 4) == padding(lengths[:3], 4) == 0.0
    uneven = [{"prompt": "What? ", "completion": " ".join(["list"] * (40 if i % 4 else 1))} for i in range(16)]
    for options in ({}, {"group_by_length": True}, {"packing": True}, {"per_device_train_batch_size": 1}):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="abkd"):
            made = trainer(tmp_path / str(len(options)), data=uneven, max_steps=1, **options)
            made.task.before_training(sharded=False, writes=False, evaluates_first=True)
        assert ("group_by_length: true" in caplog.text) == (not options)
