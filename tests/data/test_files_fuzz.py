"""Fuzzed data files: rows or a one-sentence error, never a traceback."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkd.data import load_rows
from abkd.errors import DataError

ROWS = [
    {"prompt": 'a, "b"\n', "completion": "é\u2028\\ \ud83d\ude42"},
    {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": [{"text": "a"}]}], "n": -1.5e3},
]
PAIRS = [{"prompt": f"q{i}", "completion": None if i % 3 else "é" * i} for i in range(30)]
NASTY = [b"", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"\xff\xfe", b"\x00" * 64, b"null", b'"' * 3, b"[{}]"]


def parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), sink)
    return sink.getvalue().to_pybytes()


LINES = "\n".join(map(json.dumps, ROWS)).encode()
FILES = {
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.csv": b'prompt,completion\r\n"a, ""b""\n",c\r\nd,e\r\n',
    "a.parquet": parquet(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
}


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """Truncated, flipped, duplicated or replaced bytes."""
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        middle = draw(st.sampled_from([b"", content[start:end] * 2, *NASTY]) | st.binary(max_size=8))
        content = content[:start] + middle + content[draw(st.sampled_from([start, end, len(content)])) :]
    return content


def rows_or_a_sentence(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.write_bytes(content)
    said = ""
    try:
        assert all(isinstance(row, dict) for row in load_rows(path))
    except DataError as error:
        said = str(error)
    assert not said or (name in said and said.encode())


HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=HEALTH)
@given(data=st.data())
def test_anything(tmp_path, name, data):
    rows_or_a_sentence(tmp_path, name, data.draw(changed(FILES[name])))


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=3_000, deadline=None, suppress_health_check=HEALTH)
@given(data=st.data())
def test_anything_for_longer(tmp_path, name, data):
    rows_or_a_sentence(tmp_path, name, data.draw(changed(FILES[name])))
