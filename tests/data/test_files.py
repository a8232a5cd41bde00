"""Which files are read, compressed or several, and the errors for those that are not."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
from datetime import datetime

import pyarrow
import pyarrow.parquet
import pytest

from abkd.data import files as files_module
from abkd.data import fingerprint, load_rows, prepare_dataset, split_held_out
from abkd.errors import DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(40)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """An existing local file is never looked up on the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
FORMATS = {
    ".jsonl": LINES,
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": b"prompt,completion\r\n" + b"\r\n".join(f"{r['prompt']},{r['completion']}".encode() for r in ROWS),
}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_packed_files_give_the_same_rows(tmp_path, kind, packing):
    path = tmp_path / f"a{kind.upper()}{packing}"
    path.write_bytes(PACKERS[packing](b"\xef\xbb\xbf" + FORMATS[kind]))
    assert list(load_rows(path)) == ROWS


@pytest.mark.parametrize("packing", PACKERS)
def test_packed_files_that_are_cut_off_or_damaged(tmp_path, packing):
    path, whole = tmp_path / f"a.jsonl{packing}", PACKERS[packing](os.urandom(5_000).hex().encode())
    damaged = whole[:60] + b"garbage!" * 9 + whole[132:]
    for content in (whole[: len(whole) // 2], damaged, LINES, PACKERS[packing](LINES) + b"no stream", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.jsonl{packing}"):
            load_rows(path)


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
def test_streams_behind_each_other_and_the_zeros_behind_them(tmp_path, packing):
    """Compressed files as written by pigz, pbzip2, xz and tapes."""
    path, pack = tmp_path / f"a.jsonl{packing}", PACKERS[packing]
    path.write_bytes(pack(LINES + b"\n") + pack(LINES) + bytes(8))
    assert list(load_rows(path)) == ROWS + ROWS


class TestSeveral:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "b.jsonl").write_bytes(b"\n" + LINES)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
        (tmp_path / "c.csv").write_text("prompt,completion\nhi,\n")
        return tmp_path

    def test_lists_and_patterns_are_read_in_order(self, folder):
        assert list(load_rows("*.jsonl*")) == list(load_rows(["a.jsonl.gz", folder / "b.jsonl"])) == ROWS * 2
        assert list(load_rows(["b.jsonl", "c.*"])) == [*ROWS, {"prompt": "hi", "completion": ""}]
        assert load_rows(["b.jsonl", "c.*"]).name == "b.jsonl, c.csv"

    def test_a_row_is_named_by_its_own_file(self, folder, chatml):
        rows = load_rows(["b.jsonl", "a.jsonl.gz", "c.csv"])
        assert [rows.place(rows.numbers[i]) for i in (0, 39, 40, 79, 80)] == [
            "b.jsonl, line 2",
            "b.jsonl, line 41",
            "a.jsonl.gz, line 1",
            "a.jsonl.gz, line 40",
            "c.csv, line 2",
        ]
        with pytest.raises(DataError, match=r"1 of 10 rows cannot be used: c\.csv, line 2: completion is empty"):
            prepare_dataset(rows.take(range(71, 81)), chatml)
        assert len(split_held_out(rows, 0.5)[1].parts) == 3

    def test_an_empty_one_among_them_is_told(self, folder, caplog):
        (folder / "d.jsonl").write_text("\n")
        rows = load_rows(["d.jsonl", "b.jsonl"])
        assert rows.place(rows.numbers[0]) == "b.jsonl, line 2"
        assert "d.jsonl has no rows" in caplog.text

    def test_one_that_is_not_there(self, folder):
        for names in (["b.jsonl", "nothing.jsonl"], ["b.jsonl", "nothing"]):
            with pytest.raises(DataError, match=f"{names[1]} does not exist"):
                load_rows(names)
        with pytest.raises(DataError, match=r"no file matches 'x\*'"):
            load_rows("x*")

    def test_a_name_with_signs_of_a_pattern_is_a_name(self, folder):
        (folder / "b[1].jsonl").write_bytes(LINES)
        assert list(load_rows("b[1].jsonl")) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", LINES, r"train\.txt is not supported: expected \.jsonl, \.json, \.csv, \.parquet, .* got \.txt"),
        ("train", LINES, "got no suffix"),
        ("train.jsonl.zip", LINES, r"got \.zip"),
        ("a.parquet.gz", LINES, "compressed internally"),
        ("a.jsonl", gzip.compress(LINES), r"compressed with gzip: rename it to end in \.gz"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("a.csv", "prompt,completion\na,b".encode("utf-16"), "UTF-16"),
        ("a.json", LINES.decode().encode("utf-32"), "UTF-32"),
        ("a.csv", b"PAR1", r"parquet file: rename it to end in \.parquet"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', r"line 1: duplicate key 'text'"),
        ("a.json", b'[{"text": "a"}, {"text": "a", "text": "b"}]', "line 1: .*duplicate key 'text'"),
        ("a.csv", b"text,text\na,b\n", "duplicate column 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"n": ' + b"9" * 5_000 + b"}", "line 2: a number that is too large"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: nested too deeply"),
        ("a.json", b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "line 1: .*nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deeply: expected at most 100"),
        ("a.json", b'[{"text": "a"},\n {"text": "b"}\n {"text": "c"}]', "line 3: not valid JSON"),
        ("a.json", b'[{"text": "a"},\n {"text": "b"}\n', "line 3: not valid JSON"),
        ("a.json", b'[{"text": "a"}] x', "Extra data"),
        ("a.json", b'[{"text": "a"},]', "not valid JSON"),
        ("a.json", b"", "it is empty"),
        ("a.json", b"[]", "has no rows"),
    ],
)
def test_what_is_not_read_is_said(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows(path)


def test_a_row_without_end_is_no_row(tmp_path, monkeypatch):
    """At most one row is held in memory, so a decompression bomb fails at the first row that is too long."""
    monkeypatch.setattr("abkd.data.readers.LONGEST", 1000)
    monkeypatch.setattr("abkd.data.readers._AHEAD", 100)
    for name, start in (("a.jsonl", b'{"text": "'), ("a.json", b'[{"text": "'), ("a.csv", b"text\n")):
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(start + b"a" * 10_000_000))
        with pytest.raises(DataError, match=r"expected one row per line|expected rows of at most|field larger"):
            load_rows(path)


def test_a_json_list_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("abkd.data.readers._AHEAD", 7)
    rows = [{"text": f"é\u2028 {i}\n\\", "n": -1.5e3, "l": [None, True, {}], "f": float("inf")} for i in range(30)]
    path = tmp_path / "a.json"
    for indent, plain in ((None, True), (3, False)):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=plain), "utf-8")
        assert list(load_rows(path)) == rows


def test_long_fields_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"text\n{'long ' * 50_000}\n")
    assert len(load_rows(path)[0]["text"]) == 250_000


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    for name in (tmp_path / "a.jsonl", "/dev/zero"):
        with pytest.raises(DataError, match="must be a regular file, got a pipe or a device"):
            load_rows(name)
    with pytest.raises(DataError, match=r"is a directory: specify the files in it"):
        load_rows([tmp_path / "d.jsonl"])


def test_names_that_are_no_text(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff.jsonl")
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError) as caught:
        load_rows(os.fsdecode(path))
    assert str(caught.value).encode().decode().endswith("at column 1)")
    with open(path, "wb") as file:
        file.write(LINES)
    rows = load_rows(os.fsdecode(path))
    assert (rows.name, fingerprint(rows)) == (r"\xff.jsonl", fingerprint(ROWS))


def test_parquet_that_claims_more_than_there_is(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    for content in (whole[:-40] + b"\x7f" * 32 + whole[-8:], whole[:100] + b"\xff" * 60 + whole[160:], whole[:-3]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet"):
            load_rows(path)


def test_parquet_with_times_that_python_has_no_form_for(tmp_path):
    """Dates after the year 9999 or in unknown time zones become numbers; nothing else changes."""
    far, us = 2**62, pyarrow.timestamp("us")
    talk = pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "at": us}))
    columns = {
        "far": pyarrow.array([far, None], us),
        "zone": pyarrow.array([1, 2], pyarrow.timestamp("us", tz="Mars/Olympus")),
        "day": pyarrow.array([2**30, 0], pyarrow.date32()),
        "talk": pyarrow.array([[{"role": "user", "at": far}], None], talk),
        "fine": pyarrow.array([0, None], us),
        "fine_talk": pyarrow.array([[{"role": "user", "at": 0}], None], talk),
        "text": pyarrow.array(["a", "b"]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first, second = load_rows(tmp_path / "a.parquet")
    epoch = datetime(1970, 1, 1)
    assert first == {
        "far": far,
        "zone": 1,
        "day": 2**30,
        "talk": [{"role": "user", "at": far}],
        "fine": epoch,
        "fine_talk": [{"role": "user", "at": epoch}],
        "text": "a",
    }
    assert second == {**dict.fromkeys(columns), "zone": 2, "day": 0, "text": "b"}
    texts = pyarrow.Array.from_buffers(pyarrow.utf8(), 2, pyarrow.array([b"a", b"\xff"]).buffers())
    pyarrow.parquet.write_table(pyarrow.table({**columns, "text": texts}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet is not UTF-8 text"):
        load_rows(tmp_path / "b.parquet")


def test_every_kind_that_is_named_is_read():
    assert set(FORMATS) | {".parquet"} == set(files_module.KINDS)
