"""Fuzzed recipes and components: a value or a one-sentence error, within seconds; nothing is executed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from abkd.errors import ConfigError
from abkd.notation import components, parse, render
from abkd.recipe import Recipe, parse_flags
from abkd.recipe._text import read_mapping

LONG = 20_000
GATE = 100
PIECES = [*components(), *"()[]{},=*+-.:'\"# \n", "0.2", "1e400", "inf", "nan", "9" * 30, "None", "True", "lambda: 0"]
PIECES += ["alpha=", "beta=", "__import__('os')", "open('x')", "python:os:system", "python:os", "\x00", "\ud800"]
NOTATION = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=80)

NAMES = ["seed", "learning_rate", "divergence", "terms", "output_dir", "train_file", "bf16", "generation_kwargs", "<<"]
SCALARS = [
    "1",
    "1e-4",
    "no",
    "~",
    "-.inf",
    ".nan",
    "'x'",
    "|\n  x",
    "*a",
    "&a 3",
    "!!int x",
    "!!bool ''",
    "!!python/name:os",
]
SCALARS += [
    "0x1F",
    "2020-01-01",
    "1_0",
    "AlphaBeta(0.2, 0.7)",
    "ForwardKL()",
    "9" * 400,
    "\t",
    "[a, b",
    "{a: b}",
    "é\x85",
]
LINES = st.tuples(st.sampled_from(NAMES) | st.text(max_size=5), st.sampled_from([": ", ":", " ", ": - ", ": [", "? "]),
                  st.sampled_from(SCALARS) | st.text(max_size=9)).map("".join)  # fmt: skip
YAML = st.lists(LINES, max_size=8).map("\n".join) | st.text(max_size=80)


@contextmanager
def one_sentence(longest: int) -> Iterator[None]:
    """An error message, if there is one, has at most this many characters."""
    found = None
    try:
        yield
    except ConfigError as error:
        found = str(error)
    assert found is None or 0 < len(found) < longest


def read_notation(text: str) -> None:
    with one_sentence(2_000):
        value = parse(text)
        assert repr(parse(render(value))) == repr(value)


def read_recipe(text: str) -> None:
    with one_sentence(5_000):
        values: dict[str, Any] = read_mapping(text, "recipe.yaml")
        Recipe.from_dict({"model_name_or_path": "a", "teacher_model_name_or_path": "b", **values}, where="recipe.yaml")


def read_flags(words: list[str]) -> None:
    with one_sentence(5_000):
        flags = parse_flags(words)
        Recipe.from_dict({"model_name_or_path": "a", "train_file": "b", **flags}, flags=flags.keys())


FLAGS = st.lists(
    st.sampled_from([f"--{name}" for name in NAMES]) | st.sampled_from(SCALARS) | st.text(max_size=9), max_size=5
)
READERS = [(NOTATION, read_notation), (YAML, read_recipe), (FLAGS, read_flags)]


@pytest.mark.parametrize(("texts", "read"), READERS, ids=["notation", "yaml", "flags"])
def test_any_text_is_a_value_or_one_sentence(texts: Any, read: Any) -> None:
    Recipe.from_dict({"model_name_or_path": "a", "teacher_model_name_or_path": "b", "train_file": "c"})  # imports
    settings(max_examples=GATE, deadline=None)(given(texts)(read))()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("texts", "read"), READERS, ids=["notation", "yaml", "flags"])
def test_any_text_is_a_value_or_one_sentence_tried_for_long(texts: Any, read: Any) -> None:
    Recipe.from_dict({"model_name_or_path": "a", "teacher_model_name_or_path": "b", "train_file": "c"})
    settings(max_examples=LONG, deadline=None)(given(texts)(read))()


@pytest.mark.parametrize("text", ["seed: " + "[" * 1000 + "]" * 1000, "a: &a [*a]", "x: " + "y" * 300_000])
def test_no_text_is_too_much(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_mapping(text, "recipe.yaml")
    assert len(str(refused.value)) < 300


def test_aliases_are_counted_as_what_they_stand_for() -> None:
    lines = ["z0: &z0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"z{i}: &z{i} [{', '.join([f'*z{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="expand to more than 20,000 values"):
        read_mapping("\n".join([*lines, "generation_kwargs: *z7"]), "recipe.yaml")
    assert read_mapping("a: &a {top_k: 3}\nb: *a", "recipe.yaml")["b"] == {"top_k": 3}


def test_plain_yaml_of_ours_is_read_as_others_read_it() -> None:
    text = "seed: 3\nlearning_rate: 1.0e-4\nreport_to: [a, b]\nrun_name: 'x # y'\n"
    assert read_mapping(text, "r") == yaml.safe_load(text)
