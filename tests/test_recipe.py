"""Recipes: one flat YAML, the same as flags; one-sentence errors; a dumped recipe loads as equal."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from abkd.divergences import AlphaBeta, ForwardKL
from abkd.errors import AbkdError, ConfigError, OutputDirError
from abkd.recipe import Recipe, dump, load, parse_flags, shipped
from abkd.recipe._text import read_mapping
from abkd.schedules import anneal, stages
from abkd.sweep import sweep

BASE = {"model_name_or_path": "student", "teacher_model_name_or_path": "teacher", "train_file": "data.jsonl"}


def make(**values: Any) -> Recipe:
    return Recipe.from_dict({**BASE, **values})


def refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        make(**values)
    return str(refused.value)


def from_flags(*words: str) -> Recipe:
    return Recipe.from_dict({**BASE, **parse_flags(words)})


# ---- text and back


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load_dump_and_load_equal(name: str, tmp_path: Path) -> None:
    recipe = load(shipped()[name])
    assert load(name) == recipe
    dump(recipe, tmp_path / "again.yaml")
    assert load(tmp_path / "again.yaml") == recipe
    assert recipe.distill_config().output_dir == recipe.output_dir


def test_the_shipped_recipes_are_these() -> None:
    names = [name for name in shipped() if "/" not in name]
    assert names == sorted(names)
    assert set(names) >= {  # a method of its own file has a test of its own
        "context_distillation",
        "distillm",
        "distillm_skew_reverse",
        "fdistill_js",
        "fdistill_js_exact",
        "fdistill_kl",
        "fdistill_rkl",
        "fdistill_tvd",
        "gkd",
        "gpt2_dolly_abkd",
        "gpt2_dolly_abkd_adaptive",
        "gpt2_dolly_abkd_mixed",
        "gpt2_dolly_abkd_on_policy",
        "gpt2_dolly_forward_kl",
        "gpt2_dolly_reverse_kl",
        "hidden_cache",
        "imitkd",
        "lora",
        "minillm_on_policy_reverse_kl",
        "quickstart",
        "seqkd",
        "topk_cache",
    }


@pytest.mark.parametrize("name", shipped())
def test_a_resolved_recipe_is_a_recipe_that_means_the_same(name: str) -> None:
    recipe = load(name)
    resolved = recipe.resolved()
    plain = yaml.safe_load(recipe.to_yaml(resolved=True))
    again = Recipe.from_dict(plain)
    assert again.resolved() == resolved
    assert again.objective() == recipe.objective()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"divergence": "AlphaBeta(-1, 1e-3)", "learning_rate": "3e-5", "bf16": True},
        {"divergence": anneal(ForwardKL(), AlphaBeta(0.2, 0.7), shape="cosine")},
        {"divergence": stages((1, ForwardKL()), (2, AlphaBeta())), "kd_ratio": 0.5},
        {"eval_strategy": "no", "run_name": "on", "report_to": ["tensorboard"], "max_steps": -1},
        {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4},
        {"teacher_model_init_kwargs": {"dtype": "bfloat16"}, "output_dir": "läuft"},
        {"train_file": None, "dataset_name": "owner/name", "dataset_test_split": "test"},
    ],
)
def test_load_of_dump_is_equal(values: dict[str, Any], tmp_path: Path) -> None:
    recipe = make(**values)
    text = dump(recipe, tmp_path / "recipe.yaml")
    assert load(tmp_path / "recipe.yaml") == recipe
    assert Recipe.from_dict(yaml.safe_load(text)) == recipe, "plain YAML readers must see the same recipe"


def test_a_component_is_read_into_itself_and_written_as_its_notation() -> None:
    recipe = make(divergence="AlphaBeta(0.2, 0.7)")
    assert recipe.config["divergence"] == AlphaBeta(0.2, 0.7)
    assert "divergence: AlphaBeta(alpha=0.2, beta=0.7)\n" in recipe.to_yaml()


def test_a_component_without_notation_is_refused_when_dumped() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(ForwardKL):
        pass

    with pytest.raises(ConfigError, match=r"Mine"):
        dump(make(divergence=Mine()))


# ---- files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "line 1"),
        ("- a\n- b\n", "lines of the form 'name: value'"),
        ("train_file: a\ntrain_file: b\n", "line 2: the key 'train_file' is given twice"),
        ("", "model_name_or_path is missing"),
        ("x: !!python/object:os.system {}", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert says in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_file_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere.yaml'; the shipped recipes are .*quickstart"):
        load("nowhere.yaml")


def test_yaml_no_is_a_text_and_1e_4_a_number(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(make()) + "eval_strategy: no\nlearning_rate: 1e-4\nbf16: yes\nrun_name: ~\n")
    config = load(file).config
    assert config == {"eval_strategy": "no", "learning_rate": 1e-4, "bf16": True}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    dump(make(learning_rate=1e-5, seed=1), tmp_path / "recipe.yaml")
    recipe = Recipe.from_yaml(tmp_path / "recipe.yaml", parse_flags(["--learning_rate", "2e-5"]))
    assert recipe.config == {"learning_rate": 2e-5, "seed": 1}


# ---- flags


def test_flags_in_every_spelling() -> None:
    recipe = from_flags(
        "--learning_rate", "1e-4", "--bf16", "--divergence=AlphaBeta(0.2, 0.7)", "--max_steps", "-1",
        "--save_strategy", "no", "--run_name", "5", "--lora_target_modules", "[q, v]", "--use_peft",
        "--teacher_model_init_kwargs", "{dtype: bfloat16}", "--kd_ratio", "null",
    )  # fmt: skip
    assert recipe.use_peft
    assert recipe.lora_target_modules == ["q", "v"]
    assert recipe.config == {
        "learning_rate": 1e-4,
        "bf16": True,
        "divergence": AlphaBeta(0.2, 0.7),
        "max_steps": -1,
        "save_strategy": "no",
        "run_name": "5",
        "teacher_model_init_kwargs": {"dtype": "bfloat16"},
    }


def test_a_divergence_with_negative_numbers_is_a_value() -> None:
    assert from_flags("--divergence", "AlphaBeta(-0.5, 1.5)").config["divergence"] == AlphaBeta(-0.5, 1.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stray"], "unexpected argument 'stray'"),
        (["--bf16", "true", "stray"], "unexpected argument 'stray'"),
        (["-x"], "unexpected argument '-x'"),
        (["--", "x"], "unexpected argument '--'"),
        (["--seed", "1", "--seed=2"], "--seed is given twice"),
    ],
)
def test_words_that_are_no_flags(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_flags(words)
    assert says in str(refused.value)


def test_a_flag_without_its_value_is_a_wrong_type() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate must be a number, got true"):
        from_flags("--learning_rate", "--bf16")


@pytest.mark.parametrize("path", ["run #2", "null", "1", "a: b", "~", "[x]", "{x}", "true", "'q'", " x "])
def test_a_path_is_taken_as_it_is_typed(path: str) -> None:
    recipe = from_flags("--output_dir", path)
    assert recipe.output_dir == path
    assert recipe.distill_config().output_dir == path
    assert from_flags("--run_name", path).config["run_name"] == path


@pytest.mark.parametrize("path", ["1e3", "5e-4", "08", "no", "null", "~", "1.", ".5", "true"])
def test_a_text_that_reads_as_something_else_is_written_in_quotes(path: str) -> None:
    text = from_flags("--train_file", "x", "--output_dir", path).to_yaml()
    assert Recipe.from_dict(read_mapping(text, "recipe")).output_dir == path
    assert yaml.safe_load(text)["output_dir"] == path


def test_an_empty_flag_unsets_a_text_and_null_everything_else() -> None:
    recipe = from_flags("--train_file", "", "--dataset_name", "x", "--max_steps", "null")
    assert (recipe.train_file, recipe.dataset_name, recipe.config) == (None, "x", {})


def test_a_dash_in_a_flag_is_an_underscore() -> None:
    assert from_flags("--learning-rate", "1e-3").config == {"learning_rate": 1e-3}
    with pytest.raises(ConfigError, match="--learning_rate is given twice"):
        parse_flags(["--learning-rate", "1", "--learning_rate", "2"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--learning_rte", "1"], "unknown option --learning_rte; did you mean --learning_rate?"),
        (["--alpha", "1"], "--alpha is not an option of abkd; use part of the divergence"),
        (["--learning_rate", "fast"], "--learning_rate must be a number, got 'fast' (a string)"),
    ],
)
def test_a_flag_is_blamed_and_not_the_file(words: list[str], says: str, tmp_path: Path) -> None:
    dump(make(), tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError) as refused:
        Recipe.from_yaml(tmp_path / "recipe.yaml", parse_flags(words))
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("text", ["[ForwardKL(), AlphaBeta(0.2, 0.7)]", "{a: Mixup(0.2, 3)}"])
def test_a_component_that_yaml_cuts_at_its_comma_is_explained(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"divergence: {text}\n")
    with pytest.raises(
        ConfigError, match=r"line 1: '\w+\(0.2' is split at a comma; .*needs quotes, such as 'AlphaBeta"
    ):
        load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("seed: 1".encode("utf-16"), "is not UTF-8 (invalid byte at 1): save it as UTF-8"),
        (b"output_dir: caf\xe9", "is not UTF-8 (invalid byte at 16): save it as UTF-8"),
        (b"? [a, b]\n: 1\n", "line 1: expected a name before the colon"),
        (b"seed: " + b"9" * 5000, "not YAML (Exceeds the limit"),
        (b"seed: " + b"9" * 4000, "seed must be from 0 to 4294967295, got 9999"),
        (b"seed: " + b"[" * 1000, "nested too deeply"),
        (b"output_dir: !!binary aGk=", "could not determine a constructor"),
        (b"seed: !!int ''", "not YAML"),
        (b"a: 1\n---\na: 2\n", "line 2: not YAML (but found another document)"),
        (b"seed:\t1\n\tx: 2", "line 1: not YAML"),
        (b"seed: \x00", "not YAML"),
        (b"x" * 300_000, "it has more than 200,000 bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bytes_that_are_no_recipe(raw: bytes, says: str, tmp_path: Path) -> None:
    base = b"model_name_or_path: a\nteacher_model_name_or_path: b\ntrain_file: c\n" if b"seed: 9" in raw else b""
    (tmp_path / "recipe.yaml").write_bytes(base + raw)
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "recipe.yaml")
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + dump(make(seed=3)).encode())
    assert load(tmp_path / "recipe.yaml").config == {"seed": 3}


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_no_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no recipe file"):
        load(name)


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ConfigError, match=r"which is a directory, a pipe or a device"):
            load(path)


def test_a_token_is_not_written_into_the_record_of_a_run() -> None:
    recipe = make(push_to_hub=True, hub_token="secret")
    assert "secret" not in recipe.to_yaml(resolved=True)


# ---- refusals


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"divergance": "ForwardKL()"}, "unknown key 'divergance'; did you mean divergence?"),
        ({"learning-rate": 1}, "did you mean learning_rate?"),
        ({"qqqqqq": 1}, "unknown key 'qqqqqq'; 'abkd distill --help' lists the main ones"),
        ({"max_seq_length": 1}, "use max_length"),
        ({"teacher_model": "x"}, "use teacher_model_name_or_path"),
        ({"student": "x"}, "use model_name_or_path"),
        ({"alpha": 0.2}, "'divergence: AlphaBeta(alpha=0.2, beta=0.7)'"),
        ({"beta": 0.2}, "'divergence: AlphaBeta(alpha=0.2, beta=0.7)'"),
        ({"temperature": 2}, "use kd_temperature"),
        ({"kl": "forward"}, "'divergence: ForwardKL()' or 'divergence: ReverseKL()'"),
        ({"lr": 1}, "use learning_rate"),
    ],
)
def test_unknown_names(values: dict[str, Any], says: str) -> None:
    assert says in refusal(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast' (a string)"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"learning_rate": True}, "learning_rate must be a number, got true"),
        ({"max_steps": 2.5}, "max_steps must be an integer, got 2.5"),
        ({"bf16": "maybe"}, "bf16 must be true or false"),
        ({"train_file": {"a": 1}}, "train_file must be a string or a list"),
        ({"on_bad_row": "skip"}, "one of 'error', 'drop', got 'skip' (a string)"),
        ({"eval_strategy": "sometimes"}, "must be one of 'no', 'steps', 'epoch'"),
        ({"teacher_model_init_kwargs": 3}, "teacher_model_init_kwargs must be a mapping, got 3"),
        ({"divergence": 3}, "divergence must be a divergence or a schedule, got 3"),
        ({"divergence": "AlphaBta()"}, "divergence: there is no component 'AlphaBta'; did you mean AlphaBeta?"),
        ({"divergence": "AlphaBeta(inf, 1)"}, "alpha must be a finite number, got inf"),
        ({"divergence": "anneal(1.0, 2.0)"}, "which has the value 1.0"),
    ],
)
def test_wrong_types(values: dict[str, Any], says: str) -> None:
    assert says in refusal(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kd_ratio": 1.5}, "kd_ratio must be between 0 and 1"),
        ({"kd_ratio": -0.1}, "kd_ratio must be between 0 and 1"),
        ({"kd_ratio": 0.5, "ce_weight": 1}, "keep either kd_ratio or ce_weight"),
        ({"kd_ratio": 0.5, "ce_weight": 1, "kd_weight": 1}, "keep either kd_ratio or ce_weight and kd_weight"),
        ({"kd_weight": 0}, "nothing would be learned"),
        ({"kd_temperature": 0}, "kd_temperature must be >= 0.0001"),
        ({"kd_temperature": -1}, "kd_temperature must be >= 0.0001"),
        ({"ce_weight": -1}, "ce_weight must be >= 0"),
        ({"max_length": 1}, "max_length must be >= 2"),
        ({"eval_fraction": 1.0}, "eval_fraction must be >= 0 (nothing is held out) and < 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be 1 or more"),
        ({"train_file": None}, "no data: set train_file"),
        ({"dataset_name": "x"}, "are both set; keep one"),
        ({"dataset_config": "x"}, "needs dataset_name, which is not set"),
        ({"eval_file": "x", "eval_fraction": 0.1}, "both define the held-out set"),
        ({"model_name_or_path": None}, "model_name_or_path is missing: the student"),
        ({"teacher_model_name_or_path": ""}, "teacher_model_name_or_path is missing: set it to the teacher"),
        ({"lora_r": 4}, "lora_r applies only to LoRA; set use_peft: true"),
        ({"lora_r": 4, "lora_alpha": 4}, "lora_alpha, lora_r apply only to LoRA"),
        ({"use_peft": True, "lora_dropout": 1.0}, "lora_dropout must be >= 0 and < 1"),
        ({"lm_coef": 1.0}, "set pretrain_file"),
        ({"pretrain_file": "x"}, "set lm_coef > 0"),
    ],
)
def test_what_cannot_be_meant(values: dict[str, Any], says: str) -> None:
    assert says in refusal(**values)


def test_several_problems_come_together() -> None:
    text = refusal(learning_rate="fast", lr=1, divergence="kl")
    assert text.startswith("recipe: 3 problems\n  - ")


@pytest.mark.parametrize(
    "values", [{}, {"kd_ratio": 0.25, "kd_temperature": 2}, {"ce_weight": 1, "kd_weight": "anneal(1.0, 0.5)"}]
)
def test_the_objective_is_that_of_the_config(values: dict[str, Any]) -> None:
    recipe = make(row_weight="TeacherConfidence()", scale_by_temperature_squared=True, **values)
    assert recipe.objective() == recipe.distill_config().objective()


def test_the_objective_is_known_where_the_device_does_not_fit() -> None:
    assert make(bf16=True, tf32=True).objective() == make().objective()


def test_transformers_own_refusal_is_a_config_error() -> None:
    recipe = make(tf32=True)
    with pytest.raises(ConfigError, match="invalid training arguments: --tf32 requires"):
        recipe.distill_config()


# ---- the disk


@pytest.fixture
def ready(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "run").mkdir()
    return {"train_file": str(tmp_path / "data.jsonl"), "output_dir": str(tmp_path / "run")}


def test_files_and_model_directories_must_exist(ready: dict[str, str]) -> None:
    make(**ready).check_ready()
    for name, path in (
        ("eval_file", "no.jsonl"),
        ("model_name_or_path", "./no"),
        ("teacher_model_name_or_path", "/no/t"),
    ):
        with pytest.raises(ConfigError, match=f"{name}: there is no .*'{path}'"):
            make(**{**ready, name: path}).check_ready()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar:nonexist", "There is no CIFAR network 'nonexist'"),
        ("cifar:wrn_17_2", "has a depth of 10, 16, 22, 28"),
        ("timm:resnet19", "timm has no classifier 'resnet19'"),
        ("torchvision:deeplabv3_resnet50", "torchvision has no classifier 'deeplabv3_resnet50'"),
        ("keras:resnet50", "must begin with one of cifar:, python:"),
        ("python:mynets", "got python:mynets, which names no function"),
    ],
)
def test_networks_of_collections_must_exist(name: str, says: str, tmp_path: Path, monkeypatch: Any) -> None:
    """For the student and the teacher, in a sweep before the first run; existing ones are not built."""
    zoos = {"timm": {"is_model": "resnet18".__eq__}, "torchvision": {}}
    zoos["torchvision.models"] = {"list_models": lambda module: ["resnet18"]}
    for zoo, there in zoos.items():
        monkeypatch.setitem(sys.modules, zoo, SimpleNamespace(__spec__=True, **there))
    monkeypatch.setattr("abkd.training_arguments.needed_by_models", lambda _: [])
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    own = {"task": "image-classification", "train_file": str(tmp_path / "a.npz"), "output_dir": str(tmp_path / "run")}
    fine = ["cifar:wrn_16_4", "timm:resnet18", "timm:hf-hub:a/b", "torchvision:ResNet18", "hub/name"]
    for each in fine:
        made = Recipe.from_dict({**own, "model_name_or_path": each, "teacher_model_name_or_path": "cifar:resnet8"})
        made.check_ready()
    with pytest.raises(ConfigError, match=says):
        sweep(made, grid={"model_name_or_path": [*fine, name]})
    with pytest.raises(ConfigError, match=says):
        sweep(made, grid={"teacher_model_name_or_path": [*fine, name]})
    assert not (tmp_path / "run").exists()


def test_one_data_file_several_or_a_pattern(ready: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for several in (f"{tmp_path}/*.jsonl", [ready["train_file"], f"{tmp_path}/d*"]):
        recipe = make(**{**ready, "train_file": several})
        recipe.check_ready()
        assert recipe.resolved()["train_file"] == several
    for wrong, says in (
        ("more", "is a directory; name the files"),
        ("pipe.jsonl", "is a pipe"),
        ("x*", "no file matches"),
    ):
        with pytest.raises(ConfigError, match=f"train_file: .*{says}"):
            make(**{**ready, "train_file": [ready["train_file"], str(tmp_path / wrong)]}).check_ready()
    assert "must be one .npz file" in refusal(task="image-classification", train_file=["a.npz", "b.npz"])


def test_an_output_directory_in_use_is_left_alone(ready: dict[str, str]) -> None:
    Path(ready["output_dir"], "notes.txt").write_text("mine")
    with pytest.raises(OutputDirError, match=r"in use \(it contains notes.txt\).*--resume.*--overwrite_output_dir"):
        make(**ready).check_ready()
    with pytest.raises(OutputDirError, match=r"files that abkd did not write \(notes.txt\).*nothing was changed"):
        make(**ready, overwrite_output_dir=True).check_ready()
    make(**ready).check_ready(output=False)


def test_an_output_directory_is_no_input(ready: dict[str, str]) -> None:
    with pytest.raises(OutputDirError, match=r"contains train_file .*must not write to"):
        make(**{**ready, "output_dir": str(Path(ready["train_file"]).parent)}, overwrite_output_dir=True).check_ready()


def test_a_run_that_died_before_its_first_checkpoint_may_be_resumed(ready: dict[str, str]) -> None:
    for name in ("recipe.yaml", "run.json", "metrics.jsonl"):
        Path(ready["output_dir"], name).write_text("{}")
    make(**ready).check_ready(resume=True)
    Path(ready["output_dir"], "notes.txt").write_text("mine")
    with pytest.raises(OutputDirError, match=r"needs a checkpoint.*notes\.txt, which no run wrote; move that"):
        make(**ready).check_ready(resume=True)


def test_resume_wants_a_checkpoint(ready: dict[str, str]) -> None:
    with pytest.raises(OutputDirError, match="needs a checkpoint"):
        make(**ready).check_ready(resume=True)
    with pytest.raises(OutputDirError, match="needs a checkpoint"):
        make(**ready, resume_from_checkpoint="x").check_ready()
    checkpoint = Path(ready["output_dir"], "checkpoint-12")
    checkpoint.mkdir()  # an empty folder cannot be resumed from
    with pytest.raises(OutputDirError, match="needs a checkpoint"):
        make(**ready).check_ready(resume=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    make(**ready).check_ready(resume=True)
    with pytest.raises(OutputDirError, match="choose one"):
        make(**ready, overwrite_output_dir=True).check_ready(resume=True)


def test_an_output_directory_that_is_a_file(ready: dict[str, str]) -> None:
    with pytest.raises(OutputDirError, match="is a file"):
        make(**{**ready, "output_dir": ready["train_file"]}).check_ready()


def test_refusals_are_exit_code_two() -> None:
    assert ConfigError.exit_code == OutputDirError.exit_code == 2
    assert issubclass(OutputDirError, AbkdError)


def test_a_recipe_extends_another_file_and_a_shipped_one(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("extends: quickstart\nkd_ratio: 0.25\nlearning_rate: 2.0e-5\n")
    (tmp_path / "inner").mkdir()
    own = tmp_path / "inner" / "own.yaml"
    own.write_text("extends: ../base.yaml\nkd_ratio: 0.5\nlearning_rate: null\n")
    made, quickstart = load(own), load("quickstart")
    assert made.model_name_or_path == quickstart.model_name_or_path
    assert made.config["kd_ratio"] == 0.5
    assert "learning_rate" not in made.config
    assert Recipe.from_yaml(own, {"kd_ratio": 0.75}).config["kd_ratio"] == 0.75
    assert "extends" not in made.to_yaml()
    written = tmp_path / "written.yaml"
    assert load(written) == made if dump(made, written) else False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: own.yaml\n", "own.yaml: extends own.yaml, which extends it in turn"),
        ("extends: other.yaml\n", "other.yaml: extends own.yaml, which extends it in turn"),
        ("extends: nowhere\n", "extends: there is no recipe file 'nowhere'; the shipped recipes are"),
        ("extends: [quickstart, lora]\n", "extends must be the name of one recipe, got"),
    ],
)
def test_what_a_recipe_cannot_extend(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("extends: own.yaml\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(tmp_path / "own.yaml")
