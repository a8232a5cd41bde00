from __future__ import annotations

import fcntl

import pytest
from typer.testing import CliRunner

from abkd.cli._app import app
from abkd.data.stored import data_cache

NAMES = ("rows-" + "a" * 24, "tokens-" + "0" * 24)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """One entry of each kind, and files of others."""
    monkeypatch.setenv("ABKD_CACHE", str(tmp_path / "cache"))
    ours = [*(f"data/{name}/data.arrow" for name in NAMES), "data/.rows-" + "b" * 24 + ".x.draft/data.arrow"]
    ours += [f"data/.{NAMES[0]}.lock", "teacher/0123456789abcdef/manifest.json", "teacher-text/0123456789abcdef.jsonl"]
    foreign = ["data/mine.jsonl", "data/rows-notes/a.txt", "teacher/notes/a.txt", "demo.gguf"]
    for name in (*ours, *foreign):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("mine")
    (tmp_path / "cache" / "data" / ("rows-" + "c" * 24)).symlink_to(tmp_path / "elsewhere")
    return ours, foreign


def there(names) -> list[str]:
    return [name for name in names if (data_cache().parent / name).exists()]


def run(*words) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["clean", *words])
    return ended.exit_code, ended.output


def test_first_it_only_says_what_there_is(caches):
    code, said = run()
    assert (code, there(caches[0])) == (0, caches[0])
    assert "4 kB  copies of large datasets" in said
    assert "Nothing was deleted" in said


def test_it_deletes_what_is_asked_for_and_ours(caches, tmp_path):
    ours, foreign = caches
    code, said = run("data")
    assert code == 0, said
    assert there(ours) == [name for name in ours if not name.startswith("data/")]
    assert run("--all")[0] == 0
    assert (there(ours), there(foreign)) == ([], foreign)
    assert (tmp_path / "elsewhere" / "a.txt").read_text() == "mine"


def test_what_is_being_written_stays(caches):
    with (data_cache() / f".{NAMES[0]}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = run("data")
    assert code == 0
    assert "is being written and was kept" in said
    assert there(caches[0])[:1] == [f"data/{NAMES[0]}/data.arrow"]


def test_an_unknown_kind_is_named(caches):
    code, said = run("everything")
    assert (code, there(caches[0])) == (2, caches[0])
    assert "the kind of cache must be one of data, teacher, teacher-text, native, got 'everything'" in said
