"""Large data: stored in Arrow, tokenised by several processes, and bit-identical to small data."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import pickle
import threading
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest

from abkd.data import fingerprint, load_rows, pack, prepare_dataset, split_held_out, stored
from abkd.data.stored import StoredRows, data_cache
from abkd.errors import DataError, StorageError
from tiny_parts import make_chatml

CALL = {"name": "weather", "arguments": {"city": "Oslo", "units": None}}
ROWS = [
    *({"prompt": f"What is {i % 20}?", "completion": f"It is {i}. " * (i % 4 + 1)} for i in range(40)),
    {"completion": "é\u2028", "prompt": "half a pair: \\", "n": float("inf"), "calls": [CALL, {"name": 1}, []]},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
]


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    """Here more than ten rows are large, and two processes take four rows each."""
    monkeypatch.setenv("ABKD_CACHE", str(tmp_path / "cache"))
    for module in ("load", "tokens"):
        monkeypatch.setattr(f"abkd.data.{module}.FEW", 10)
    monkeypatch.setattr("abkd.data.tokens._AT_ONCE", 4)
    monkeypatch.setattr("abkd.data.stored._BATCH", 7)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n" + "\n".join(map(json.dumps, ROWS)))
    return path


def small(monkeypatch) -> None:
    for module in ("load", "tokens"):
        monkeypatch.setattr(f"abkd.data.{module}.FEW", 1_000)


def kept() -> list[str]:
    return sorted(folder.name.partition("-")[0] for folder in data_cache().glob("*-*") if folder.name[0] != ".")


@pytest.mark.parametrize("count", [5, 15], ids=["few", "many"])
def test_texts_of_other_types_are_decoded_or_bad_however_many(tmp_path, count):
    """Hive and Spark write strings as unmarked bytes; a date would be trained on in one of its many formats."""
    texts, dates = tmp_path / "texts.parquet", tmp_path / "dates.parquet"
    day = [datetime.date(2020, 1, 1)] * count
    asked = pyarrow.array([f"What is {i}?".encode() for i in range(count)])
    table = pyarrow.table({"prompt": asked, "completion": pyarrow.array([b"yes"] * count), "when": day})
    pyarrow.parquet.write_table(table, texts)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": asked, "completion": day}), dates)
    tokenizer = make_chatml()
    first = prepare_dataset(texts, tokenizer)[0]
    trained = [token for token, on in zip(first["input_ids"], first["trained"], strict=True) if on]
    assert tokenizer.decode(trained).startswith("yes")
    with pytest.raises(DataError, match="must both be strings"):
        prepare_dataset(dates, tokenizer)


def test_rows_are_those_of_the_file(file):
    rows = load_rows(file)
    assert isinstance(rows.rows, StoredRows)
    assert list(rows) == ROWS
    assert fingerprint(rows) == fingerprint(ROWS)
    assert list(rows.numbers) == list(range(3, 45))
    assert rows.columns == {"prompt", "completion", "n", "calls"}
    assert rows[:3].columns == {"prompt", "completion"}
    assert list(rows[5:9][1:3]) == ROWS[6:8]
    assert rows[-1] == ROWS[-1]
    assert list(pickle.loads(pickle.dumps(rows[2:5]))) == ROWS[2:5]


@pytest.mark.parametrize("settings", [{}, {"context": "Think.", "privileged": True}, {"max_length": 24}])
def test_tokens_are_to_the_bit_those_of_small_data(file, chatml, monkeypatch, settings):
    settings = {"max_length": 256, "on_bad_row": "drop", **settings}
    found = prepare_dataset(load_rows(file), chatml, **settings)
    again = prepare_dataset(load_rows(file), chatml, **settings)
    assert kept() == ["rows", "tokens"]
    small(monkeypatch)
    plain = prepare_dataset(load_rows(file), chatml, **settings)
    assert not isinstance(load_rows(file).rows, StoredRows)
    for each in (found, again):
        assert list(each) == list(plain)
        assert each.fingerprint == plain.fingerprint
        assert (each.lengths, each.columns, each.account) == (plain.lengths, plain.columns, plain.account)
        assert each.trained_tokens == plain.trained_tokens
        assert "context" in settings or pack(each, 512).fingerprint == pack(plain, 512).fingerprint
        assert each.with_pretraining([[1, 2], [3]]).fingerprint == plain.with_pretraining([[1, 2], [3]]).fingerprint
        assert list(pickle.loads(pickle.dumps(each))) == list(plain)


def test_the_same_rows_are_held_out(file, monkeypatch):
    found = [split_held_out(load_rows(file), 0.2, seed=3) for _ in range(2)]
    small(monkeypatch)
    expected = split_held_out(load_rows(file), 0.2, seed=3)
    for parts in found:
        for part, other in zip(parts, expected, strict=True):
            assert isinstance(part.rows, StoredRows)
            assert list(part.numbers) == list(other.numbers)
            assert list(part) == list(other)


def test_nothing_is_read_or_tokenised_twice(file, chatml, monkeypatch):
    first = [prepare_dataset(part, chatml).fingerprint for part in split_held_out(load_rows(file), 0.2)]

    def never(*args, **kwargs):
        raise AssertionError("it was done again")

    for name in ("load.write_rows", "split._held_out", "tokens._pieces"):
        monkeypatch.setattr(f"abkd.data.{name}", never)
    assert [prepare_dataset(part, chatml).fingerprint for part in split_held_out(load_rows(file), 0.2)] == first


def test_what_the_tokens_depend_on_is_not_mixed_up(file, chatml):
    other = make_chatml()
    other.chat_template = "{{ 'Be nice.' }}" + str(other.chat_template)
    cases = [(chatml, {}), (make_chatml(size=330), {}), (chatml, {"max_length": 24}), (other, {})]
    seen = {prepare_dataset(load_rows(file)[:20], tokenizer, **settings).fingerprint for tokenizer, settings in cases}
    prepare_dataset(load_rows(file)[:20], make_chatml())
    assert (len(seen), kept()) == (4, ["rows", *["tokens"] * 4])
    file.write_text(file.read_text().replace("It is", "It was", 1))
    assert prepare_dataset(load_rows(file)[:20], chatml).fingerprint not in seen


def test_bad_rows_keep_their_lines(file, chatml, tmp_path):
    lines = file.read_text().splitlines()
    lines[22] = json.dumps({"prompt": "a", "completion": None})
    file.write_text("\n".join(lines))
    (tmp_path / "more.jsonl").write_text('{"prompt": " ", "completion": "b"}\n')
    rows = load_rows([file, tmp_path / "more.jsonl"])
    said = (
        r"2 of 43 rows cannot be used: mine\.jsonl, line 23: completion is null; more\.jsonl, line 1: prompt is empty\."
    )
    with pytest.raises(DataError, match=said):
        prepare_dataset(rows, chatml)
    assert kept() == ["rows"]
    for _ in range(2):
        assert prepare_dataset(rows, chatml, on_bad_row="drop").dropped == {
            "completion is null": 1,
            "prompt is empty": 1,
        }
    with pytest.raises(DataError, match=said):
        prepare_dataset(rows, chatml)


def test_an_error_in_a_process_is_said_as_it_is(file):
    tokenizer = make_chatml()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"^the data has conversations but the tokenizer has no chat template: [^\n]*$"):
        prepare_dataset(load_rows(file), tokenizer)


def test_a_malformed_line_keeps_nothing(file):
    file.write_text(file.read_text() + "\n{")
    with pytest.raises(DataError, match=r"line 45: not valid JSON"):
        load_rows(file)
    assert kept() == []
    assert [path.name for path in data_cache().iterdir() if path.is_dir()] == []


def test_tables_become_rows_without_foreign_nulls():
    rows = [{"prompt": f"{i}", "completion": "b", "tools": [{("a" if i % 2 else "c"): i}]} for i in range(20)]
    found = load_rows(datasets.Dataset.from_list(rows))
    assert isinstance(found.rows, StoredRows)
    assert list(found) == rows
    assert list(load_rows(datasets.Dataset.from_list(rows))) == rows
    assert kept() == ["rows"]


def test_only_the_owner_can_read_it(file, chatml, caplog):
    with caplog.at_level(logging.INFO, "abkd"):
        prepare_dataset(load_rows(file), chatml)
    assert f"is kept in {data_cache()}" in caplog.text
    assert "abkd clean" in caplog.text
    for path in [data_cache(), *data_cache().rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


class TestKept:
    def test_what_died_in_the_middle_is_not_used(self, file, monkeypatch):
        def dies(path, rows):
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("abkd.data.load.write_rows", dies)
            with pytest.raises(KeyboardInterrupt):
                load_rows(file)
        folder = data_cache() / _name(file)
        folder.rename(folder.with_name(f".{folder.name}.killed.draft"))
        assert list(load_rows(file)) == ROWS
        assert not list(data_cache().glob(".*.draft"))

    @pytest.mark.parametrize("damage", ["cut", "changed", "manifest"])
    def test_damaged_tokens_are_made_again(self, file, chatml, damage, caplog):
        expected = list(prepare_dataset(load_rows(file), chatml))
        (folder,) = data_cache().glob("tokens-*")
        path = folder / ("manifest.json" if damage == "manifest" else "data.arrow")
        content = bytearray(path.read_bytes())
        content[-50 if damage == "manifest" else len(content) // 2] ^= 1
        path.write_bytes(content[:-9] if damage == "cut" else content)
        assert list(prepare_dataset(load_rows(file), chatml)) == expected

    def test_several_at_once_make_one(self, file):
        made, results = [], []
        original = stored.write_rows

        def counted(path, rows):
            made.append(path)
            return original(path, rows)

        def load():
            results.append(list(load_rows(file)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("abkd.data.load.write_rows", counted)
            threads = [threading.Thread(target=load) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert (len(made), results) == (1, [ROWS] * 3)

    def test_a_full_disk_says_so(self, file, monkeypatch):
        def full(path, rows):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("abkd.data.load.write_rows", full)
        with pytest.raises(StorageError, match=r"copy of the data in .* could not be written: .*No space.*ABKD_CACHE"):
            load_rows(file)


def _name(file: Path) -> str:
    rows = load_rows(file).rows
    assert isinstance(rows, StoredRows)
    return rows.folder.name
