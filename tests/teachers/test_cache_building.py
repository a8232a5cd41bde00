"""Building a cache: killed anywhere, on a full disk, with corrupt shards, by several processes; and errors."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_parts import build, data, files, known, live, setting, view

from abkd.errors import ConfigError, DataError, NonFiniteError, OutputDirError, StorageError, VocabularyError
from abkd.teachers import HiddenCache, TopKCache, identity
from abkd.teachers.caches import _build, _lock
from abkd.teachers.caches._manifest import owner
from abkd.teachers.caches._store import open_store
from tiny_parts import make_chatml
from training_parts import gpt2, teacher, tokenizer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard per batch."""
    monkeypatch.setattr(_build, "SHARD_BYTES", 1)


@pytest.fixture
def spec(tmp_path: Path) -> HiddenCache:
    return HiddenCache(path=str(tmp_path / "cache"))


def folder(spec: Any) -> Path:
    return Path(spec.path)


def assert_whole(spec: HiddenCache) -> None:
    """Every row is stored once and equals the teacher's."""
    reader, read = spec.open(setting()), view(list(data()))
    reader.check_covers(data(), "train")
    assert reader.store.broken == {}
    assert reader.store.rows == data().trained_tokens
    torch.testing.assert_close(reader(read).hidden, live()(read).hidden, rtol=0, atol=1e-5)
    assert not [file for file in folder(spec).iterdir() if file.suffix == ".draft"]


class Killed(BaseException):
    """Stands for a killed process: no later code runs."""


def dying(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Dies at the ``step``-th disk operation; returns how many there were."""
    done = 0

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done >= step:
                raise Killed
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", before(os.fsync))
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, before(getattr(Path, name)))
    return lambda: done


@pytest.mark.usefixtures("small")
def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        count = dying(patch, 10_000)
        build(HiddenCache(path=str(tmp_path / "whole")), batch_size=6)
        steps = count()
    assert steps > 15
    for step in range(1, steps + 1):
        spec = HiddenCache(path=str(tmp_path / str(step)))
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step)
            with pytest.raises(Killed):
                build(spec, batch_size=6)
        there = open_store(folder(spec), owner(spec.facts(known(), 1.0)))
        finished = {
            name: stamp
            for name, stamp in files(folder(spec)).items()
            if (folder(spec) / name).with_suffix(".json").exists()
        }
        assert there.broken == {}
        assert build(spec, batch_size=6).made == data().trained_tokens - there.rows
        assert finished.items() <= files(folder(spec)).items()
        assert_whole(spec)


def test_nothing_is_made_twice(spec: HiddenCache) -> None:
    assert build(spec, list(data())[:5]).made == sum(sum(row["trained"]) for row in list(data())[:5])
    first = files(folder(spec))
    assert build(spec, list(data()) * 2).rows == data().trained_tokens
    assert first.items() < files(folder(spec)).items()
    again = build(spec, model=gpt2(0))  # would give another result if it were used
    assert again.made == 0
    assert again.bytes_per_row < 4 * 48 + 60
    assert_whole(spec)


@pytest.mark.usefixtures("small")
def test_processes_divide_what_is_missing(spec: HiddenCache) -> None:
    made = [build(spec, share=(process, 3)).made for process in range(3)]
    assert sum(made) == data().trained_tokens
    assert min(made) > 0
    assert_whole(spec)


def test_another_job_is_refused_while_one_is_at_work(spec: HiddenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[str] = []

    def meet(done: int, total: int) -> None:
        with pytest.raises(OutputDirError, match=f"written by process {os.getpid()}") as refused:
            with_job(monkeypatch, "another job", lambda: build(spec))
        met.append(str(refused.value))

    build(spec, progress=meet)
    assert len(met) == 2
    with_job(monkeypatch, "another job", lambda: build(spec))
    assert_whole(spec)


def with_job(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], Any]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_build, "this_job", lambda processes: name)
        action()


def test_processes_of_one_job_share_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    calls: list[str] = []
    ours = {"first": lambda: calls.append("first"), "last": lambda: calls.append("last")}
    with _lock.writing(tmp_path, _lock.this_job(2), **ours), _lock.writing(tmp_path, _lock.this_job(2), **ours):
        monkeypatch.setenv("MASTER_PORT", "29501")
        with (
            pytest.raises(OutputDirError, match="2 processes at localhost:29500"),
            _lock.writing(tmp_path, _lock.this_job(2), **ours),
        ):
            pass
    assert calls == ["first", "last"]


# ---- corrupt shards


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 7)


def flip(file: Path, at: float = 0.9) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 4
    file.write_bytes(content)


def lose(file: Path) -> None:
    file.unlink()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("harm", [cut, flip, lose])
def test_broken_shards_are_named_never_used_and_made_again(
    spec: HiddenCache, harm: Callable[[Path], None], suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    build(spec, batch_size=4)
    shards = sorted(folder(spec).glob("rows-*.safetensors"))
    harm(shards[1].with_suffix(suffix))
    reader = spec.open(setting())
    with pytest.raises(DataError, match=r"train: 4 of 12 sequences are not in the cache") as refused:
        reader.check_covers(data(), "train")
    with pytest.raises(DataError, match="is not in the cache"):
        reader(view(list(data())))
    named = (harm, suffix) != (lose, ".json")  # a shard without index was never finished
    assert (shards[1].name in str(refused.value)) == named
    others = {name: stamp for name, stamp in files(folder(spec)).items() if name != shards[1].name}
    built = build(spec)
    assert (f"{shards[1].name} in" in caplog.text) == named
    assert 0 < built.made < data().trained_tokens
    assert others.items() < files(folder(spec)).items()
    assert shards[1].name not in files(folder(spec))
    assert_whole(spec)


@pytest.mark.parametrize("part", ["manifest.json", "head.safetensors"])
def test_a_broken_manifest_or_head_is_refused_and_made_again(spec: HiddenCache, part: str) -> None:
    build(spec)
    before = files(folder(spec))
    for harm in (cut, flip):
        harm(folder(spec) / part)
        with pytest.raises((ConfigError, DataError), match=r"was changed.*run abkd cache"):
            spec.open(setting())
        assert build(spec).made == 0
        assert files(folder(spec)) == before
        assert_whole(spec)


# ---- full disk


def test_a_full_disk_leaves_what_is_complete(spec: HiddenCache) -> None:
    build(spec, list(data())[:4])
    before, limits = files(folder(spec)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"could not be written.*run abkd cache again"):
            build(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(folder(spec)) == before
    assert not list(folder(spec).glob("*.draft")) + list(folder(spec).glob(".*.draft"))
    spec.open(setting()).check_covers(list(data())[:4], "train")
    build(spec)
    assert before.items() < files(folder(spec)).items()
    assert_whole(spec)


@pytest.mark.usefixtures("small")
def test_a_disk_that_fills_up_between_shards(spec: HiddenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            build(spec, batch_size=3)
    before = files(folder(spec))
    assert 0 < len(before) < 4
    build(spec)
    assert_whole(spec)


# ---- refusals


def other(**changes: str) -> dict[str, Any]:
    return {**known(), **changes}


REFUSED = {
    "teacher": (TopKCache, {"identity": other(teacher="ffff", name="another")}, "different teacher .*expected ffff"),
    "tokenizer": (TopKCache, {"identity": other(tokenizer="ffff")}, "different tokenizer"),
    "template": (TopKCache, {"identity": other(chat_template="ffff")}, "different chat template"),
    "temperature": (TopKCache, {"temperature": 2.0}, r"different kd_temperature \(expected 2.0, got 1.0\)"),
    "k": (lambda path: TopKCache(k=8, path=path), {}, r"different k \(expected 8, got 64\)"),
    "kind": (HiddenCache, {}, "different kind"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_cache_of_something_else_is_refused(tmp_path: Path, what: str) -> None:
    build(TopKCache(path=str(tmp_path)))
    kind, options, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        kind(path=str(tmp_path)).open(setting(**options))
    with pytest.raises(ConfigError, match=message):
        build(kind(path=str(tmp_path)), **options)
    assert TopKCache().folder(TopKCache().facts(known(), 1.0)) != kind(path=None).folder(
        kind(path=None).facts(options.get("identity", known()), options.get("temperature", 1.0))
    )


def test_hidden_states_in_another_dtype_are_another_cache(spec: HiddenCache) -> None:
    build(HiddenCache(path=spec.path, dtype="bfloat16"))
    for action in (lambda: spec.open(setting(identity=None)), lambda: build(spec)):
        with pytest.raises(ConfigError, match=r"different dtype \(expected None, got bfloat16\)"):
            action()


def test_hidden_states_serve_every_temperature(spec: HiddenCache) -> None:
    build(spec, temperature=3.0)
    assert len(spec.open(setting(temperature=2.0))(view(list(data())))) == data().trained_tokens


class Squashed(torch.nn.Linear):
    """A head that is more than a matrix product."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).tanh()


def test_what_is_refused_before_and_while_building(tmp_path: Path, spec: HiddenCache) -> None:
    with pytest.raises(ConfigError, match="does not exist: run abkd cache"):
        spec.open(setting())
    dense = teacher()
    dense.lm_head.__class__ = Squashed
    with pytest.raises(ConfigError, match=r"plain matrix.*TopKCache\(k=64\)"):
        build(spec, model=dense)
    broken = teacher()
    with torch.no_grad():
        broken.lm_head.weight[5, 5] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        build(TopKCache(path=str(tmp_path / "top")), model=broken)
    loud = teacher()
    with torch.no_grad():
        loud.model.norm.weight.mul_(1e30)
    with pytest.raises(NonFiniteError, match="float16"):
        build(HiddenCache(path=str(tmp_path / "loud"), dtype="float16"), model=loud)
    assert not files(tmp_path / "top") | files(tmp_path / "loud")


def test_a_cache_is_not_continued_in_another_precision(spec: HiddenCache) -> None:
    build(spec, list(data())[:3])
    with pytest.raises(ConfigError, match="computed_in is float32, got bfloat16"):
        build(spec, model=teacher().bfloat16())


def test_a_student_with_other_classes_is_refused(tmp_path: Path) -> None:
    spec = TopKCache(path=str(tmp_path))
    build(spec)
    reader = spec.open(setting())
    reader.classes = 339
    with pytest.raises(VocabularyError, match="over 340 classes, but the student uses 339"):
        reader.check()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopKCache(k=0),
        lambda: TopKCache(k=True),
        lambda: TopKCache(path=""),
        lambda: HiddenCache(dtype="int8"),
        lambda: HiddenCache(path=Path("x")),  # type: ignore[arg-type]
    ],
)
def test_values_that_cannot_be_meant(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match=", got "):
        make()


# ---- identity


def test_identity_is_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        teacher().save_pretrained(place)
    names = identity(str(here), None, tokenizer()), identity(str(there), None, tokenizer())
    assert {**names[0], "name": ""} == {**names[1], "name": ""}
    flip(there / "model.safetensors", 0.4)
    assert identity(str(there), None, tokenizer())["teacher"] != names[0]["teacher"]
    (here / "config.json").write_text((here / "config.json").read_text() + " ")
    assert identity(str(here), None, tokenizer())["teacher"] != names[0]["teacher"]


def test_identity_of_a_hub_name_tokenizer_and_template() -> None:
    one = identity("owner/model", "abc", make_chatml())
    assert one["teacher"] == "owner/model@abc"
    assert identity("owner/model", None, tokenizer())["teacher"] == "owner/model@main"
    assert identity("owner/model", "abc", make_chatml()) == one
    changed = make_chatml()
    changed.chat_template = changed.chat_template.replace("assistant", "model")
    assert {k for k, v in identity("owner/model", "abc", changed).items() if v != one[k]} == {"chat_template"}
    grown = make_chatml()
    grown.add_tokens(["<new>"])
    assert {k for k, v in identity("owner/model", "abc", grown).items() if v != one[k]} == {"tokenizer"}


@pytest.mark.parametrize("name", ["manifest.json", "rows-1.safetensors", "thesis.txt"])
def test_a_folder_of_somebody_else_is_left_alone(spec: HiddenCache, name: str) -> None:
    folder(spec).mkdir()
    (folder(spec) / name).write_text('{"mine": 1}')
    with pytest.raises(OutputDirError, match="has files that are not of a cache"):
        build(spec)
    assert [file.name for file in folder(spec).iterdir()] == [name]
    assert (folder(spec) / name).read_text() == '{"mine": 1}'


def test_a_file_is_no_folder(spec: HiddenCache) -> None:
    folder(spec).write_text("data")
    with pytest.raises(OutputDirError, match="is a file"):
        build(spec)
