"""Streamed rows: the same for every reader, and bad ones are reported by name."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest

from abkd.data import prepare_dataset, prepare_stream, stream, stream_rows
from abkd.errors import DataError
from training_parts import rows, tokenizer, write_rows


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "WINDOW", 4)
    monkeypatch.setattr(stream, "HEAD", 6)


def streamed(file: Any, length: int = 30, seed: int = 0, **options: Any) -> Any:
    return prepare_stream(stream_rows(file), tokenizer(), length=length, seed=seed, **options)


def plain(example: Any) -> tuple[int, ...]:
    return tuple(example["input_ids"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_rows(tmp_path / "data.jsonl", rows(10))
    return tmp_path / "data.jsonl"


def test_each_pass_has_every_row_once_in_another_order(file):
    made = streamed(file)
    assert len(made) == 30
    every = sorted(map(plain, prepare_dataset(file, tokenizer())))
    passes = [[plain(made[turn * 10 + index]) for index in range(10)] for turn in range(3)]
    assert all(sorted(each) == every for each in passes)
    assert len({tuple(each) for each in passes}) == 3


def test_an_example_depends_on_its_index_and_the_seed_alone(file):
    made = streamed(file)
    in_turn = [made[0, index] for index in range(30)]
    assert [made[index] for index in (29, 3, 17, 17, 0)] == [in_turn[index] for index in (29, 3, 17, 17, 0)]
    assert [pickle.loads(pickle.dumps(made))[index] for index in (0, 11)] == [in_turn[0], in_turn[11]]
    assert [streamed(file, seed=1)[index] for index in range(30)] != in_turn


def test_compressed_and_several_files_and_tables_of_the_datasets_library_give_the_same_rows(file, tmp_path):
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    datasets.Dataset.from_list(rows(10)).save_to_disk(tmp_path / "table")
    examples = [streamed(file)[index] for index in range(10)]
    assert [streamed(packed)[index] for index in range(10)] == examples
    assert [streamed(tmp_path / "table")[index] for index in range(10)] == examples
    both = streamed([file, packed], length=20)
    assert sorted(plain(both[index]) for index in range(20)) == sorted(2 * [plain(example) for example in examples])


def test_a_bad_row_among_the_first_is_refused_at_once_and_a_later_one_when_its_turn_comes(tmp_path):
    good, bad = rows(10), {"prompt": "What? ", "completion": ""}
    write_rows(tmp_path / "early.jsonl", [*good[:3], bad, *good[3:]])
    write_rows(tmp_path / "late.jsonl", [*good, bad])
    with pytest.raises(DataError, match=r"1 of 6 rows cannot be used: line 4: .*on_bad_row: drop"):
        streamed(tmp_path / "early.jsonl")
    made = streamed(tmp_path / "late.jsonl")
    with pytest.raises(DataError, match=r"late\.jsonl, line 11: .*on_bad_row: drop"):
        list(itertools.islice(made, 11))


def test_a_dropped_row_trains_nothing_and_is_named(tmp_path, caplog):
    write_rows(tmp_path / "late.jsonl", [*rows(7), {"prompt": "What? ", "completion": ""}])
    made = streamed(tmp_path / "late.jsonl", length=8, on_bad_row="drop")
    examples = [made[index] for index in range(8)]
    assert [any(example["trained"]) for example in examples].count(False) == 1
    assert "late.jsonl, line 8 is skipped: completion is empty" in caplog.text


def test_of_a_row_with_several_examples_all_are_trained_in_time(tmp_path):
    chat = {"messages": [{"role": role, "content": role + str(i)} for i in range(2) for role in ("user", "assistant")]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    thinking = _thinking()
    every = {plain(example) for example in prepare_dataset(tmp_path / "chat.jsonl", thinking)}
    assert len(every) == 2
    made = prepare_stream(stream_rows(tmp_path / "chat.jsonl"), thinking, length=20, seed=0)
    assert {plain(made[index]) for index in range(20)} == every


def _thinking() -> Any:
    """A template that drops the beginning of earlier answers, as Qwen's and DeepSeek's drop their reasoning."""
    from tiny_parts import make_chatml

    made = make_chatml()
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: "
        "{% if m['role'] == 'assistant' and not loop.last %}short{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return made


def test_files_that_vanish_or_hold_nothing_are_said(file):
    empty = file.with_name("empty.jsonl")
    empty.write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        streamed(empty)
    made = streamed(file)
    file.write_text("")
    with pytest.raises(DataError, match="no longer has rows"):
        made[0]


def test_the_fingerprint_changes_with_the_files(file):
    before = streamed(file).fingerprint
    assert before == streamed(file).fingerprint
    write_rows(file, rows(11))
    assert streamed(file).fingerprint != before
