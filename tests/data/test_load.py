from __future__ import annotations

import json
from pathlib import Path

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from abkd.data import fingerprint, load_rows, split_held_out
from abkd.errors import DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(40)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_suffix_gives_the_same_rows(tmp_path):
    lines = "\n".join(map(json.dumps, ROWS))
    write(tmp_path / "a.jsonl", "\ufeff" + lines + "\n\n")
    write(tmp_path / "a.json", json.dumps(ROWS))
    write(tmp_path / "a.csv", "prompt,completion\n" + "\n".join(f"{r['prompt']},{r['completion']}" for r in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        rows = load_rows(tmp_path / f"a.{suffix}")
        assert list(rows) == ROWS, suffix
        assert fingerprint(rows) == fingerprint(ROWS)


def test_memory_hub_objects_and_saved_folders(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "saved")
    assert list(load_rows(ROWS)) == list(load_rows(table)) == list(load_rows(str(tmp_path / "saved"))) == ROWS


def test_only_a_newline_ends_a_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "one\u2028two"}\r\n{"text": "three"}\n')
    assert [row["text"] for row in load_rows(path)] == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": \n', r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', r"line 2: expected an object with columns, got list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"line 2: not UTF-8"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.json", '{"text": "x"}\n{"text": "y"}', r"\.jsonl"),
        ("a.json", '{"text": "x"}', "expected a list of objects, got dict"),
        ("a.json", "[1]", "row 1: expected an object"),
        ("a.json", b"[\xff]", "not UTF-8"),
        ("a.csv", "prompt,completion\na,b\nonly one\n", "line 3: expected 2 fields"),
        ("a.csv", 'prompt,completion\na,"b\n', "not valid CSV"),
        ("a.csv", "prompt,completion\n", "has no rows"),
        ("a.parquet", "not parquet", "not a readable parquet file"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        load_rows(write(tmp_path / name, content))


def test_missing_files_and_wrong_objects(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="mapping of train, test"):
        load_rows({"train": ROWS, "test": ROWS})
    with pytest.raises(DataError, match=r"got a DataFrame: use datasets\.Dataset.from_pandas"):
        load_rows(pandas.DataFrame(ROWS))
    with pytest.raises(DataError, match="row 2: expected an object"):
        load_rows([{"text": "x"}, "y"])
    with pytest.raises(DataError, match="no rows"):
        load_rows([])


class Faulty:
    """A user-defined data set whose third row raises."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == 2:
            raise self.error
        return {"prompt": "a", "completion": str(index)}


@pytest.mark.parametrize("error", [KeyError("text"), IndexError("list index"), OSError("disk"), NotImplementedError()])
def test_a_row_that_a_data_set_cannot_give_is_named_and_not_taken_for_the_end(error):
    with pytest.raises(DataError, match=rf"the dataset, row 3: cannot be read \({type(error).__name__}: "):
        load_rows(Faulty(error))

    def written():
        yield from ROWS
        raise error

    with pytest.raises(DataError, match=f"row {len(ROWS) + 1}: cannot be read"):
        load_rows(written())


def test_unknown_split_of_a_saved_dataset(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    assert len(load_rows(str(tmp_path / "saved"))) == len(ROWS)
    with pytest.raises(DataError, match="split 'test'"):
        load_rows(str(tmp_path / "saved"), split="test")


def test_a_folder_of_data_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.jsonl", "\n".join(map(json.dumps, ROWS)))
    assert list(load_rows(str(tmp_path / "files"))) == ROWS


class TestFingerprint:
    def test_sees_content_and_order_but_not_the_order_of_columns(self):
        assert fingerprint([{"a": 1, "b": 2}]) == fingerprint([{"b": 2, "a": 1}])
        assert fingerprint(ROWS) != fingerprint(ROWS[::-1])
        assert fingerprint(ROWS) != fingerprint(ROWS[:-1])

    def test_is_the_same_tomorrow(self):
        assert fingerprint([{"text": "é"}]) == "75b4e72c255b0f3c"


class TestSplit:
    def test_is_a_partition_in_order_of_the_wanted_size(self):
        train, held = split_held_out(ROWS, 0.2, seed=3)
        assert len(held) == 8
        assert sorted([*train.numbers, *held.numbers]) == list(range(1, 41))
        assert list(train.numbers) == sorted(train.numbers)
        assert held[0] == ROWS[held.numbers[0] - 1]

    def test_depends_on_content_and_seed_alone(self):
        held = split_held_out(ROWS, 0.2)[1]
        again = split_held_out(ROWS[::-1], 0.2)[1]
        other = split_held_out(ROWS, 0.2, seed=1)[1]
        assert {r["prompt"] for r in held} == {r["prompt"] for r in again}
        assert {r["prompt"] for r in held} != {r["prompt"] for r in other}

    @pytest.mark.parametrize(
        "row",
        [
            lambda i: {"prompt": f" p{i % 5} ", "completion": str(i)},
            lambda i: {"prompt": [{"role": "user", "content": f"p{i % 5}"}], "completion": []},
            lambda i: {
                "messages": [{"role": "user", "content": f"p{i % 5}"}, {"role": "assistant", "content": str(i)}]
            },
            lambda i: {"text": f"p{i % 5}"},
        ],
    )
    def test_rows_of_one_prompt_stay_together(self, row):
        rows = [row(i) for i in range(20)]
        train, held = split_held_out(rows, 0.1)
        assert len(held) == 4, "the smallest group, as none fits into two rows"
        assert {(n - 1) % 5 for n in train.numbers}.isdisjoint({(n - 1) % 5 for n in held.numbers})

    def test_holds_out_at_least_one_row_and_keeps_one(self):
        train, held = split_held_out(ROWS[:2], 0.001)
        assert (len(train), len(held)) == (1, 1)
        train, held = split_held_out(ROWS[:2], 0.999)
        assert len(held) >= 1

    def test_refuses_what_would_leak(self):
        with pytest.raises(DataError, match="one distinct prompt in 3 rows"):
            split_held_out([ROWS[0]] * 3, 0.5)
        with pytest.raises(DataError, match="between 0 and 1"):
            split_held_out(ROWS, 1.0)

    def test_row_numbers_survive_slicing(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '\n{"text": "x"}\n\n{"text": "y"}\n')
        rows = load_rows(path)
        assert list(rows.numbers) == [2, 4]
        assert list(rows[1:].numbers) == [4]


def test_half_a_surrogate_pair_can_be_hashed():
    rows = [{"text": "\ud800"}, {"text": "b"}]
    assert fingerprint(rows) != fingerprint(rows[1:])
    assert len(split_held_out(rows, 0.5)[1]) == 1
