"""The saved student: in its original dtype, with adapters merged or with a base model that can be found."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors import safe_open

import abkd
from abkd.errors import ConfigError
from abkd.models.loading import load_causal_lm, load_student, load_tokenizer
from abkd.models.saving import stored_dtype
from training_parts import config, gap, llama, rows, teacher, tokenizer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.arange(5, 25)[None]


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def run(student: Any, path: Path, **options: Any) -> abkd.DistillTrainer:
    """Train for two steps and save."""
    own = {name: options.pop(name) for name in ("eval_dataset", "peft_config") if name in options}
    given = {"save_strategy": "no", "max_steps": 2, "learning_rate": 1e-3, **options}
    made = abkd.DistillTrainer(
        student, teacher(), config(path, **given), train_dataset=rows(), processing_class=tokenizer(), **own
    )
    made.train()
    made.save_model()
    return made


def dtypes(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {str(file.get_tensor(name).dtype).removeprefix("torch.") for name in file.keys()}  # noqa: SIM118


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# -- number types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_student_is_saved_in_the_type_of_its_folder(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    folder = saved(llama(0).to(dtype), tmp_path / "student")
    assert stored_dtype(folder) == name
    trained = run(folder, tmp_path / "out", eval_dataset=rows(3), save_strategy="steps", save_steps=2)
    assert {weight.dtype for weight in trained.model.parameters()} == {torch.float32}
    assert dtypes(tmp_path / "out") == {name}
    assert dtypes(tmp_path / "out" / "checkpoint-2") == {"float32"}
    size = [(path / "model.safetensors").stat().st_size for path in (Path(folder), tmp_path / "out")]
    assert size[0] == pytest.approx(size[1], rel=0.01)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["dtype"], found["use_cache"]) == (name, True)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    rounded = {key: value.to(dtype).float() for key, value in weights(trained.model).items()}
    assert gap(ours, rounded) == 0


def test_the_last_evaluation_is_of_the_rounded_weights(tmp_path: Path) -> None:
    trained = run(llama(0), tmp_path, eval_dataset=rows(3), save_dtype="bfloat16", eval_strategy="epoch")
    history = [entry["eval_forward_kl"] for entry in trained.state.log_history if "eval_forward_kl" in entry]
    trained.loss.student = type(trained.models.student)(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    )
    assert trained.evaluate()["eval_forward_kl"] == pytest.approx(history[-1], rel=1e-6)


def test_where_rounding_costs_too_much_float32_is_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abkd.trainer._final._WORSE", -1e-3)  # now even a tiny loss is too much
    with caplog.at_level(logging.WARNING, "abkd"):
        trained = run(llama(0), tmp_path, eval_dataset=rows(3), save_dtype="bfloat16")
    assert "in bfloat16 the student would be worse on the evaluation set (forward_kl" in caplog.text
    assert dtypes(tmp_path) == {"float32"}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert gap(loaded, weights(trained.model)) == 0


def test_weights_that_a_type_cannot_hold_are_not_rounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = llama(0)
    with torch.no_grad():
        student.lm_head.weight[0, 0] = 1e6
    with caplog.at_level(logging.WARNING, "abkd"):
        run(student, tmp_path, save_dtype="float16", learning_rate=0.0)
    assert "some weights would be infinite in float16" in caplog.text
    assert dtypes(tmp_path) == {"float32"}


def test_a_student_in_float16_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights are in float16 .*load it in float32"):
        run(llama(0).half(), tmp_path)


# -- adapters ------------------------------------------------------------------------------------------------------


def adapter(base: str, folder: Path, *, seed: int = 5) -> torch.Tensor:
    """Saves a trained adapter of ``base`` in ``folder``; returns its output."""
    torch.manual_seed(seed)
    model = get_peft_model(llama(0), LoraConfig(init_lora_weights=False, **LORA))
    model.peft_config["default"].base_model_name_or_path = base
    saved(model, folder)
    return logits(model)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return saved(llama(0), tmp_path / "base")


@pytest.mark.parametrize("use_peft", [True, False])
def test_a_trained_adapter_is_not_lost(
    use_peft: bool, base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = adapter(base, tmp_path / "student")
    options = {"peft_config": LoraConfig(**LORA)} if use_peft else {}
    with caplog.at_level(logging.INFO, "abkd"):
        run(str(tmp_path / "student"), tmp_path / "out", learning_rate=0.0, **options)
    assert ("training continues from the adapter" if use_peft else "is merged into its base model") in caplog.text
    assert (tmp_path / "out" / "adapter_config.json").is_file() == use_peft
    torch.testing.assert_close(logits(load_causal_lm(str(tmp_path / "out"), what="out")), expected)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(base: str, tmp_path: Path) -> None:
    adapter(base, tmp_path / "student")
    for file in (tmp_path / "student").glob("tokenizer*"):
        file.unlink()
    found = load_tokenizer(str(tmp_path / "student"), what="model_name_or_path")
    assert found.get_vocab() == tokenizer().get_vocab()


def test_a_teacher_may_be_an_adapter(base: str, tmp_path: Path) -> None:
    expected = adapter(base, tmp_path / "teacher")
    torch.testing.assert_close(logits(load_causal_lm(str(tmp_path / "teacher"), what="teacher")), expected)


@pytest.mark.parametrize("written", ["../base", "base"])
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_a_relative_base_is_found_from_here_or_from_the_adapter(
    written: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = adapter(written, tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    model = load_student("student", use_peft=True)
    assert model.peft_config["default"].base_model_name_or_path == os.path.realpath(base)
    torch.testing.assert_close(logits(model), expected)


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


BROKEN: dict[str, tuple[Any, str]] = {
    "no base": ({"base_model_name_or_path": None}, "does not name its base model: set base_model_name_or_path"),
    "lost base": ({"base_model_name_or_path": "./gone"}, r"the base model of the adapter .*, './gone', does not exist"),
    "another task": ({"task_type": "SEQ_CLS"}, "expected an adapter for CAUSAL_LM .*, got one for the task SEQ_CLS"),
    "prompts": ({"num_virtual_tokens": 4}, "uses prompt learning"),
    "code to import": ({"megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "names code to import"),
    "another rank": ({"r": 8}, "does not fit its base model"),
    "more layers": ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "does not fit its base model"),
    "fewer layers": ({"target_modules": ["q_proj"]}, r"does not use, such as .*v_proj"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused(fault: str, base: str, tmp_path: Path) -> None:
    values, said = BROKEN[fault]
    adapter(base, tmp_path / "student")
    change(tmp_path / "student", **values)
    with pytest.raises(ConfigError, match=f"model_name_or_path: .*{said}"):
        load_student(str(tmp_path / "student"), use_peft=True)


@pytest.mark.filterwarnings("ignore")
def test_a_base_that_only_the_adapter_names_is_said(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter("somebody/base", tmp_path / "student")
    with (
        caplog.at_level(logging.WARNING, "abkd"),
        pytest.raises(ConfigError, match="base model of the adapter"),
    ):
        load_student(str(tmp_path / "student"), use_peft=True)
    assert "names the base model 'somebody/base', which is loaded from the hub" in caplog.text


def test_fresh_adapters_do_not_take_the_place_of_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the student already has adapters"):
        run(get_peft_model(llama(0), LoraConfig(**LORA)), tmp_path, peft_config=LoraConfig(**LORA))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"r": 4}, r"a PEFT configuration, such as LoraConfig\(r=16\), got {'r': 4}"),
        (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), r"prompt learning \(PROMPT_TUNING\)"),
        (AdaLoraConfig(total_step=9, target_modules=["q_proj"]), "is for AdaLoRA, which needs a training loop"),
    ],
)
def test_adapters_of_a_kind_that_cannot_be_trained_here_are_refused(given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(llama(0), tmp_path, peft_config=given)
    if not isinstance(given, dict):
        with pytest.raises(ConfigError, match=f"the student .*{says}"):
            run(get_peft_model(llama(0), given), tmp_path)


def test_a_saved_adapter_says_what_it_belongs_to(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = run("./base", tmp_path / "out", peft_config=LoraConfig(**LORA))
    monkeypatch.chdir("/")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {base}" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "More Information Needed" not in card
    torch.testing.assert_close(logits(load_causal_lm(str(tmp_path / "out"), what="out")), logits(trained.model))


def test_without_adapters_there_is_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="merge_adapter applies only to PEFT adapters, and the student has none"):
        run(llama(0), tmp_path, merge_adapter=True)


def test_merged_adapters_are_an_ordinary_model(tmp_path: Path) -> None:
    folder = saved(llama(0).bfloat16(), tmp_path / "student")
    out = tmp_path / "out"
    trained = run(folder, out, peft_config=LoraConfig(**LORA), merge_adapter=True, eval_dataset=rows(3))
    assert not (out / "adapter_config.json").exists()
    with safe_open(out / "model.safetensors", "pt") as ours, safe_open(f"{folder}/model.safetensors", "pt") as plain:
        assert sorted(ours.keys()) == sorted(plain.keys())
    assert dtypes(out) == {"bfloat16"}
    assert hasattr(trained.model, "peft_config")  # what was trained is as it was
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    expected = logits(trained.model)
    assert (logits(loaded) - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.parametrize(
    "options", [{}, {"peft_config": LoraConfig(**LORA), "merge_adapter": True}], ids=["whole", "merged"]
)
def test_generation_settings_of_a_student_that_is_given_are_mended_too(options, tmp_path: Path, caplog) -> None:
    student = llama(0)
    student.generation_config.do_sample, student.generation_config.temperature = False, 0.5
    run(student, tmp_path, **options)
    assert "generation_config.json of LlamaForCausalLM is not valid" in caplog.text
    assert "temperature" not in json.loads((tmp_path / "generation_config.json").read_text())


@pytest.mark.parametrize(
    "given", [{"temperature": -5}, {"do_sample": False, "temperature": 0.9, "top_p": 0.6}], ids=str
)
def test_generation_settings_that_cannot_be_saved_do_not_end_a_run(given, tmp_path: Path, caplog) -> None:
    name = saved(llama(0), tmp_path / "student")
    (tmp_path / "student" / "generation_config.json").write_text(json.dumps({**given, "eos_token_id": 1}))
    run(load_student(name, use_peft=False, dtype=torch.float32), tmp_path / "out")
    assert "generation_config.json of" in caplog.text
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert kept["eos_token_id"] in (1, [1])
    assert not given.keys() & kept.keys() - {"do_sample"}
