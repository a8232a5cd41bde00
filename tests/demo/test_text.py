"""The demo's text is readable and deterministic, and no held-out row is trained on."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from abkd.demo import english, text

Row = dict[str, Any]
SPLIT = tuple[list[Row], list[Row]]


@pytest.fixture(scope="module")
def entries() -> list[text.Entry]:
    return text.collect_entries()


@pytest.fixture(scope="module")
def split() -> SPLIT:
    return text.build_rows()


def question(row: Row) -> str:
    return row["prompt"][-1]["content"]


def answer(row: Row) -> str:
    return row["completion"][0]["content"]


def last_names(rows: Iterable[Row]) -> set[str]:
    """Taken from the rows themselves: the last part of the name in backticks."""
    names = [re.search(r"`([\w.]+)", question(row)) for row in rows]
    return {name[1].rpartition(".")[2].lower() for name in names if name}


def body(row: Row) -> frozenset[str]:
    """The words of an answer after its subject."""
    return english.words(answer(row).partition("` ")[2].partition(" ")[2])


def test_there_is_enough_of_it(split: SPLIT) -> None:
    train, held_out = split
    assert len(train) >= 700
    assert 90 <= len(held_out) <= 0.2 * len(train)


def test_rows_are_conversations(split: SPLIT) -> None:
    for row in split[0] + split[1]:
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
        assert [turn["role"] for turn in row["completion"]] == ["assistant"]


def test_no_name_and_no_answer_is_in_both(split: SPLIT) -> None:
    train, held_out = split
    assert not last_names(train) & last_names(held_out)
    assert not {answer(row) for row in train} & {answer(row) for row in held_out}


def test_no_held_out_answer_is_nearly_one_that_was_trained(split: SPLIT) -> None:
    trained = [body(row) for row in split[0]]
    for row in split[1]:
        mine = body(row)
        assert not any(len(mine & other) > 0.7 * len(mine | other) for other in trained), row


def test_nothing_twice(split: SPLIT) -> None:
    rows = split[0] + split[1]
    assert len({question(row) for row in rows}) == len({answer(row) for row in rows}) == len(rows)


def test_the_order_is_mixed(split: SPLIT) -> None:
    """The first hundred rows cover the whole library."""
    modules = {question(row).partition("`")[2].split(".")[0] for row in split[0][:100]}
    assert len(modules) > 30


def test_answers_are_whole_plain_sentences(entries: list[text.Entry]) -> None:
    for entry in entries:
        assert re.fullmatch(
            r"The `[\w.]+` (function|method|class|exception|attribute) [a-z][\x20-\x7e]+\.", entry.answer
        )
        assert entry.answer.count("`") % 2 == 0
        assert not re.search(r":param|>>>|->|\.\.|  |`` | (is|returns)\.$", entry.answer), entry.answer
        assert english.WORDS[0] + 3 <= len(entry.answer.split()) <= english.WORDS[1] + 4


def test_well_known_functions_are_told_as_one_would(entries: list[text.Entry]) -> None:
    told = {entry.name: entry for entry in entries}
    assert told["shutil.copytree"].answer.startswith(
        "The `shutil.copytree` function recursively copies a directory tree"
    )
    assert told["math.trunc"].answer.startswith(
        "The `math.trunc` function truncates the Real x to the nearest Integral"
    )
    assert told["list.append"].answer == "The `list.append` method appends object to the end of the list."
    assert told["textwrap.shorten"].call == "textwrap.shorten(text, width, **kwargs)"


def test_defaults_that_differ_between_machines_stay_out(entries: list[text.Entry]) -> None:
    assert not [entry.call for entry in entries if re.search(r"0x|[<>/'\"]|\bobject at\b", entry.call)]


def test_another_process_builds_the_same_rows_and_starts_nothing(split: SPLIT) -> None:
    code = (
        "import hashlib, json, sys, threading; from abkd.demo.text import build_rows;"
        "print(hashlib.sha256(json.dumps(build_rows()).encode()).hexdigest());"
        "assert len(threading.enumerate()) == 1; unwanted = {'antigravity', 'this', 'idlelib', 'tkinter', 'turtle',"
        " 'test', 'torch', 'transformers'}; assert not unwanted & set(sys.modules), unwanted & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert not run.stderr
    assert run.stdout.strip() == hashlib.sha256(json.dumps(split).encode()).hexdigest()


DOCS = [
    ("Return the sum of a and b, as an integer or a float.", "returns the sum of a and b, as an integer or a float."),
    ("f(a, b) -> int\n\nReturn the larger one of two given numbers.", "returns the larger one of two given numbers."),
    ("Open the named file and return a stream of bytes.", "opens the named file and returns a stream of bytes."),
    ("Copies every file of a tree and keeps their dates.", "copies every file of a tree and keeps their dates."),
    (
        "A queue that forgets its oldest item when it is full.",
        "is a queue that forgets its oldest item when it is full.",
    ),
    (
        "Raised when the other side has closed its connection.",
        "is raised when the other side has closed its connection.",
    ),
]


@pytest.mark.parametrize(("doc", "told"), DOCS)
def test_a_docstring_becomes_a_sentence(doc: str, told: str) -> None:
    assert english.tell("m.f", "function", english.fit_sentences(doc)) == f"The `m.f` function {told}"


@pytest.mark.parametrize(
    "doc",
    [
        None,
        "",
        "Too short.",
        "Return the first of all the given numbers, as follows:\n\n    1, 2",
        "Return the sum of both values without a final stop",
        "Return a new thing :param x: which is a number of things.",
        "The arguments are those of the constructor of the base class.",
        "Make a pipe that one can use to read and write.",
        "Deprecated: return the sum of both of the given values.",
        "* Return the sum of both of the given values of x.",
    ],
)
def test_what_makes_no_answer_is_left_out(doc: str | None) -> None:
    assert english.tell("m.f", "function", english.fit_sentences(doc)) is None


def test_a_second_sentence_is_told_only_where_it_means_the_function() -> None:
    first = "Return the value that is stored under the key."
    for second, told in [
        ("Raise KeyError if there is none.", " It raises KeyError if there is none."),
        ("The key may be any string.", " The key may be any string."),
        ("Pass a default to get that instead.", ""),
        ("Useful for tests.", ""),
        ("If there is none, returns the default.", ""),
    ]:
        sentences = english.fit_sentences(f"{first} {second}")
        assert english.tell("d.get", "method", sentences) == (
            f"The `d.get` method returns the value that is stored under the key.{told}"
        )
