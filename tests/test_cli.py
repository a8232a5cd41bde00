"""The command line: fixed commands and help, exit codes, and no heavy imports before they are needed."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from abkd.cli import app
from abkd.cli._help import DISTILL, Option
from abkd.config import DistillConfig
from abkd.divergences import AlphaBeta
from abkd.errors import ConfigError, Interrupted, NonFiniteError, StorageError
from abkd.recipe import Recipe
from abkd.recipe._fields import config_defaults, config_fields
from abkd.recipe._recipe import own_fields

VERBS = ["cache", "clean", "demo", "distill", "generate", "show", "shrink"]


class Ended(NamedTuple):
    """The exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str


Abkd = Callable[..., Ended]


@pytest.fixture
def abkd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Abkd:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    values = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "train_file": tmp_path / "data.jsonl",
        "output_dir": tmp_path / "run",
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, bool]]:
    """The recipes that ``abkd distill`` would have run."""
    seen: list[tuple[Recipe, bool]] = []
    replace_run(monkeypatch, lambda recipe, resume: seen.append((recipe, resume)))
    return seen


def replace_run(monkeypatch: pytest.MonkeyPatch, distill: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "abkd.run", SimpleNamespace(distill=distill))


def raising(error: BaseException) -> Callable[..., None]:
    def run(*_: Any, **__: Any) -> None:
        raise error

    return run


# ---- help


def test_the_verbs_are_these() -> None:
    assert sorted(typer.main.get_command(app).commands) == VERBS


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)], ids=str)
def test_help_fits_a_screen(abkd: Abkd, words: list[str]) -> None:
    result = abkd(*words, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert all(verb in result.stdout for verb in VERBS if not words)


def test_the_long_tail_is_one_line_of_help(abkd: Abkd) -> None:
    assert "Every field of transformers.TrainingArguments is a flag too" in abkd("distill", "--help").stdout


@pytest.mark.parametrize("option", [option for group in DISTILL.values() for option in group], ids=lambda o: o.name)
def test_help_names_the_real_defaults(abkd: Abkd, option: Option) -> None:
    assert f"--{option.name} " in abkd("distill", "--help").stdout
    assert option.default == real_default(option.name)


def real_default(name: str) -> str:
    if name in ("resume", "seeds", "grid"):
        return {"resume": "false"}.get(name, "")
    if name in own_fields():
        value = getattr(Recipe, name, "required")
    elif name in config_defaults():
        value = config_defaults()[name]
    else:
        value = getattr(DistillConfig, name)
    assert name in own_fields() | config_fields()
    return {"None": "", "False": "false"}.get(str(value), str(value))


def test_no_words_print_the_help(abkd: Abkd) -> None:
    assert "distill" in "".join(abkd()[1:])


def test_version(abkd: Abkd) -> None:
    assert re.fullmatch(r"abkd \d+\.\d+\.\d+\S*\n", abkd("--version").stdout)


# ---- distill


def test_distill_takes_flags(abkd: Abkd, flags: list[str], runs: list[Any]) -> None:
    result = abkd("distill", *flags, "--divergence", "AlphaBeta(-0.5, 1.5)", "--bf16", "--max_steps", "-1", "--seed=3")
    assert result.exit_code == 0, result.stderr
    [(recipe, resume)] = runs
    assert not resume
    assert recipe.config == {"divergence": AlphaBeta(-0.5, 1.5), "bf16": True, "max_steps": -1, "seed": 3}


def test_distill_takes_a_recipe_and_flags_win(abkd: Abkd, flags: list[str], runs: list[Any]) -> None:
    result = abkd("distill", "quickstart", *flags, "--num_train_epochs", "7")
    assert result.exit_code == 0, result.stderr
    assert runs[0][0].config["num_train_epochs"] == 7
    assert runs[0][0].config["per_device_train_batch_size"] == 4


def test_distill_resumes(abkd: Abkd, flags: list[str], runs: list[Any]) -> None:
    assert abkd("distill", *flags, "--resume").exit_code == 2
    Path(flags[-1], "checkpoint-5").mkdir(parents=True)
    Path(flags[-1], "checkpoint-5", "trainer_state.json").write_text("{}")
    assert abkd("distill", *flags).exit_code == 2
    assert abkd("distill", *flags, "--resume").exit_code == 0
    assert [resume for _, resume in runs] == [True]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to do: give a recipe"),
        (["nowhere.yaml"], "there is no recipe file 'nowhere.yaml'"),
        (["--divergance", "x"], "unknown option --divergance; did you mean --divergence?"),
        (["--alpha", "1"], "AlphaBeta(alpha=0.2, beta=0.7)"),
        (["quickstart", "other.yaml"], "unexpected argument 'other.yaml'"),
        (["quickstart"], "train_file: there is no file 'data.jsonl'"),
        (["quickstart", "--resume", "perhaps"], "--resume must be true or false"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_two(abkd: Abkd, words: list[str], says: str, runs: list[Any]) -> None:
    result = abkd("distill", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.startswith("abkd: ")
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not runs


# ---- exit codes


@pytest.mark.parametrize(
    ("error", "exit_code", "says"),
    [
        (ConfigError("wanted x"), 2, "abkd: wanted x\n"),
        (NonFiniteError("step 3: [b]loss[/b]"), 3, "abkd: step 3: [b]loss[/b]\n"),
        (StorageError("not written"), 4, "abkd: not written\n"),
        (OSError(errno.ENOSPC, "No space", "run/model.safetensors"), 4, "no space left on the disk at run/model"),
        (Interrupted("stopped"), 130, "abkd: stopped\n"),
        (KeyboardInterrupt(), 130, "abkd: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_ending_has_its_exit_code(
    abkd: Abkd,
    error: BaseException,
    exit_code: int,
    says: str,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_run(monkeypatch, raising(error))
    result = abkd("distill", *flags)
    assert result.exit_code == exit_code
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), FileNotFoundError(errno.ENOENT, "no such", "x")])
def test_a_bug_keeps_its_traceback(
    abkd: Abkd, error: Exception, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_run(monkeypatch, raising(error))
    with pytest.raises(type(error)) as escaped:
        app(["distill", *flags])
    assert escaped.value is error


def test_only_the_first_process_of_a_machine_speaks(
    abkd: Abkd, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    quiet = abkd("distill", "nowhere.yaml")
    assert quiet == (2, "", "")
    assert abkd("show", "quickstart").stdout == ""


def test_another_process_does_not_look_at_the_output_directory(
    abkd: Abkd, flags: list[str], runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process may already have written to it."""
    Path(flags[-1]).mkdir()
    Path(flags[-1], "recipe.yaml").write_text("")
    monkeypatch.setenv("RANK", "1")
    assert abkd("distill", *flags).exit_code == 0


@pytest.mark.parametrize("words", [["shrink"], ["distil"], ["demo", "--no_such_flag"]], ids=str)
def test_words_that_no_verb_takes(abkd: Abkd, words: list[str]) -> None:
    assert abkd(*words).exit_code == 2


def test_python_dash_m_ends_with_the_exit_code() -> None:
    command = [sys.executable, "-m", "abkd", "distill", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# ---- show and demo


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "</s>": 1, "two": 2, "plus": 3, "four": 4}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_show_prints_a_recipe_that_can_be_run(abkd: Abkd, tmp_path: Path) -> None:
    result = abkd("show", "gpt2_dolly_abkd", "--kd_temperature", "2")
    assert result.exit_code == 0, result.stderr
    file = tmp_path / "again.yaml"
    file.write_text(result.stdout)
    again = Recipe.from_yaml(file)
    assert again.resolved() == Recipe.from_yaml("gpt2_dolly_abkd", {"kd_temperature": 2}).resolved()
    assert result.stdout.startswith(f"# {again.objective().formula()}\n")


def test_show_explains_what_is_wrong(abkd: Abkd) -> None:
    result = abkd("show", "quickstart", "--kd_ratio", "2")
    assert result.exit_code == 2
    assert "kd_ratio must be between 0 and 1" in result.stderr


def test_show_prints_a_sample_with_its_trained_tokens(abkd: Abkd, flags: list[str], tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    (tmp_path / "data.jsonl").write_text('{"prompt": "two plus two", "completion": " four"}\n')
    student = str(tmp_path / "student")
    others = [student if word == "teacher" else word for word in flags[2:]]
    result = abkd("show", *others, "--model_name_or_path", student, "--sample")
    assert result.exit_code == 0, result.stderr
    assert "two plus two⟦four" in result.stdout
    assert "5 tokens, 2 trained" in result.stdout


def test_show_names_a_student_without_tokenizer(abkd: Abkd, flags: list[str]) -> None:
    (empty := Path(flags[-1])).mkdir()
    result = abkd("show", *flags[2:], "--model_name_or_path", str(empty), "--sample")
    assert result.exit_code == 2
    assert f"model_name_or_path: no tokenizer in {str(empty)!r}" in result.stderr


def test_demo_passes_its_switches_on(abkd: Abkd, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, dict[str, Any]]] = []
    for name in ("DEMO", "COMPARISON"):
        demo = SimpleNamespace(run=lambda path, _name=name, **words: seen.append((path, {"demo": _name, **words})))
        monkeypatch.setattr(f"abkd.demo.language.{name}", demo)
    assert abkd("demo", "--quick", "--output_dir=here").exit_code == 0
    assert abkd("demo", "--compare", "--overwrite_output_dir").exit_code == 0
    assert seen == [
        (Path("here"), {"demo": "DEMO", "quick": True, "overwrite_output_dir": False}),
        (Path("abkd-demo"), {"demo": "COMPARISON", "quick": False, "overwrite_output_dir": True}),
    ]


# ---- shrink


@pytest.mark.parametrize(
    ("in_use", "says"),
    [("student/config.json", "is in use; name another"), ("student", "is a file; use a directory")],
)
def test_shrink_leaves_a_used_directory_alone(abkd: Abkd, tmp_path: Path, in_use: str, says: str) -> None:
    (tmp_path / in_use).parent.mkdir(exist_ok=True)
    (tmp_path / in_use).write_text("mine")
    result = abkd("shrink", "t", "--layers=2", f"--output_dir={tmp_path / 'student'}", "--text_file=x.jsonl")
    assert result.exit_code == 2
    assert says in result.stderr
    assert (tmp_path / in_use).read_text() == "mine"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, the second of which has no effect."""
    place = tmp_path_factory.mktemp("teacher")
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for projection in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    (place / "data.jsonl").write_text('{"prompt": "two plus two", "completion": "four"}\n' * 3)
    return place


def test_shrink_keeps_the_layers_that_do_something(abkd: Abkd, teacher: Path, tmp_path: Path) -> None:
    student, text = tmp_path / "student", teacher / "data.jsonl"
    result = abkd("shrink", str(teacher), "--layers=2", f"--output_dir={student}", f"--text_file={text}")
    assert result.exit_code == 0, result.stderr
    layer_lines = [line for line in result.stdout.splitlines() if re.match(r"\W*\d+ .*\d\.\d{4} ", line)]
    assert ["yes" in line for line in layer_lines] == [True, False, True]
    kept = AutoModelForCausalLM.from_pretrained(student)
    assert kept.config.num_hidden_layers == 2
    original = AutoModelForCausalLM.from_pretrained(teacher)
    ids = torch.tensor([[2, 3, 4]])
    torch.testing.assert_close(kept(ids).logits, original(ids).logits)
    assert AutoTokenizer.from_pretrained(student).eos_token == "</s>"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["TEACHER", "--layers=3", "--text_file=not-even-read.jsonl"], "--layers must be < 3"),
        (["TEACHER", "--layers=2", "--text_file=nowhere.jsonl"], "nowhere.jsonl"),
        (["./nowhere", "--layers=2", "--text_file=TEXT"], "TEACHER: there is no model directory './nowhere'"),
    ],
)
def test_shrink_refuses(abkd: Abkd, teacher: Path, tmp_path: Path, words: list[str], says: str) -> None:
    text = str(teacher / "data.jsonl")
    words = [word.replace("TEACHER", str(teacher)).replace("TEXT", text) for word in words]
    result = abkd("shrink", *words, f"--output_dir={tmp_path / 'student'}")
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "student").exists()
