"""The teacher's text is generated exactly once, whatever interrupts it."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abkd.data import prepare_dataset, prompt_of, teacher_prompt_of
from abkd.errors import ConfigError, DataError, OutputDirError, StorageError
from abkd.generation import Completion, Sampling, write_completions
from abkd.origin import Origin
from abkd.sources import (
    Dataset,
    Generators,
    Mix,
    Privileged,
    Step,
    TeacherSamples,
    TeacherWriter,
    Union,
    ensure_teacher_text,
    open_source,
    write_with,
)
from training_parts import WORDS, teacher, tokenizer

NOW = Step(step=0, progress=0.0, seed=0, process=0)
EOS = tokenizer().eos_token_id
ROWS = [{"prompt": f"{WORDS[i % 9]} {' of '.join(WORDS[: i // 9])}", "completion": "a list"} for i in range(27)]


class Scribe:
    """A generator of known text that records its prompts. ``stops``: raise after this many prompts."""

    def __init__(self, answers: Mapping[str, str] | None = None, stops: int | None = None) -> None:
        self.answers, self.stops = answers or {}, stops
        self.asked: list[str] = []

    def __call__(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, limits: Sequence[int], kwargs: Mapping[str, Any]
    ) -> Iterator[dict[int, Completion]]:
        for i, prompt in enumerate(prompts):
            if self.stops is not None and len(self.asked) == self.stops:
                raise KeyboardInterrupt
            text = tokenizer().decode(list(prompt))
            self.asked.append(text)
            answer = self.answers.get(text, f"{text} and so on")
            yield {i: Completion([*tokenizer()(answer)["input_ids"], EOS], finished=True)}


def author(write: Any, **options: Any) -> TeacherWriter:
    known = {"teacher": "one", "tokenizer": "two"}
    return TeacherWriter(
        known, **{"tokenizer": tokenizer(), "max_length": 64, "max_completion_length": 16, **options, "write": write}
    )


def data(rows: Any = ROWS, **options: Any) -> Any:
    return prepare_dataset(rows, tokenizer(), max_length=64, **options)


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> TeacherSamples:
    return TeacherSamples(temperature=0, file=str(tmp_path / "text" / "t.jsonl"))


@pytest.fixture
def file(source: TeacherSamples) -> Path:
    return Path(str(source.file))


@pytest.fixture(scope="module")
def model() -> Any:
    """A teacher whose texts have all lengths, some of them without an end."""
    model = teacher()
    model.generation_config.eos_token_id = list(range(100, 130))
    return model


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(), Sampling(0.8, top_p=0.9)], ids=str)
def test_the_file_is_the_same_for_every_batch_size_and_number_of_processes(
    model: Any, sampling: Sampling, tmp_path: Path
) -> None:
    found: list[Completion] = []

    def write(name: str, batch_size: int, processes: int = 1) -> bytes:
        path = tmp_path / f"{name}.jsonl"
        own = TeacherSamples(sampling.temperature, top_p=sampling.top_p, file=str(path))
        by = author(write_with(lambda: model, tokenizer(), batch_size=batch_size))
        texts = [
            ensure_teacher_text(own, data(), by, process=process, processes=processes, wait=False)
            for process in range(processes)
        ]
        assert [text.complete for text in texts] == [False] * (processes - 1) + [True]
        found[:] = [texts[-1].completion(own, prompt_of(row)) for row in data()]
        return path.read_bytes()

    assert write("alone", 1) == write("batches", 8) == write("three processes", 4, processes=3)
    assert sorted(path.name for path in tmp_path.glob("*")) == sorted(
        f"{name}.{kind}" for name in ("alone", "batches", "three processes") for kind in ("json", "jsonl")
    )
    prompts = [prompt_of(row) for row in data()]
    expected = write_completions(model, tokenizer(), prompts, sampling, max_new_tokens=16)
    assert found == expected
    assert {written.finished for written in expected} == {True, False}


def test_a_stream_gives_the_very_tokens(source: TeacherSamples) -> None:
    """EOS is trained where the teacher generated it, and nowhere else; no tokens give no sequence."""
    rows = data()
    end, silence, blank = [7, 8, EOS], [], [EOS]
    answers = {0: Completion([7, 8, 9], finished=False), 1: Completion(silence, finished=False)}
    answers |= {2: Completion(blank, finished=True)}

    def write(prompts: Sequence[Any], *_: Any) -> Iterator[dict[int, Completion]]:
        at = {tuple(prompt_of(row)): i for i, row in enumerate(rows)}
        yield {i: answers.get(at[tuple(prompt)], Completion(end, finished=True)) for i, prompt in enumerate(prompts)}

    text = ensure_teacher_text(source, rows, author(write))
    stream = open_source(source, Generators(student=lambda *_, **__: [], teacher_text=text))
    drawn = stream.draw(list(rows), NOW)
    assert [len(sequences) for sequences in drawn] == [1, 0, *[1] * 25]
    for row, (sequence, *_), ids in zip(rows, (drawn[0], drawn[2], drawn[3]), ([7, 8, 9], [EOS], end), strict=False):
        prompt = prompt_of(sequence)
        assert sequence == {
            "input_ids": prompt + ids,
            "trained": [False] * len(prompt) + [True] * len(ids),
            "origin": Origin.TEACHER.code,
        }
        assert row["input_ids"]
    logs = stream.logs()
    assert logs == pytest.approx(
        {
            "on_policy_fraction": 0,
            "empty_completions": 1,
            "clipped_fraction": 1 / 26,
            "completion_length": (3 + 1 + 24 * 3) / 26,
        }
    )
    assert Path(str(source.file)).with_suffix(".json").is_file()
    file = Path(str(source.file))
    assert len(kept(file)) == 25  # blank completions are in the record, because a training file may not have them
    record = json.loads(file.with_suffix(".json").read_bytes())
    assert record["counts"] == {"prompts": 27, "blank": 2, "clipped": 2, "tokens": 3 + 0 + 1 + 24 * 3}
    silent = ensure_teacher_text(source, rows, author(None))
    assert [silent.completion(source, prompt_of(rows[i])) for i in range(3)] == list(answers.values())


def test_the_file_is_a_training_file(source: TeacherSamples, file: Path) -> None:
    """In the order of the data, each prompt once; read as prompt and completion, it has the same tokens."""
    ensure_teacher_text(source, data([*ROWS, *ROWS[:5]]), author(Scribe()))
    lines = kept(file)
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in ROWS]
    assert list(lines[0]) == ["prompt", "completion", "completion_ids", "finished", "key"]
    again = data(str(file))
    assert [prompt_of(row) for row in again] == [prompt_of(row) for row in data()]
    for row, line in zip(again, lines, strict=True):
        assert row["input_ids"][len(prompt_of(row)) :] == line["completion_ids"]


def test_what_is_killed_goes_on_at_the_row(source: TeacherSamples, file: Path) -> None:
    whole = Scribe()
    ensure_teacher_text(replace(source, file=str(file.with_name("whole.jsonl"))), data(), author(whole))
    with pytest.raises(KeyboardInterrupt):
        ensure_teacher_text(source, data(), author(first := Scribe(stops=10)))
    part = file.with_name("t.jsonl.part-0")
    assert len(kept(part)) == 10
    part.write_bytes(part.read_bytes()[:-7])  # as after a kill in the middle of a write
    with pytest.raises(KeyboardInterrupt):
        ensure_teacher_text(source, data(), author(second := Scribe(stops=4)), process=1, processes=2)
    text = ensure_teacher_text(source, data(), author(third := Scribe()))
    assert text.complete
    assert sorted(first.asked[:9] + second.asked + third.asked) == sorted(whole.asked)
    assert file.read_bytes() == file.with_name("whole.jsonl").read_bytes()
    assert not list(file.parent.glob("*part*"))
    ensure_teacher_text(source, data(), author(fourth := Scribe()))
    assert fourth.asked == []


def test_processes_wait_for_each_other_and_do_nothing_twice(source: TeacherSamples, file: Path) -> None:
    scribes = [Scribe() for _ in range(3)]
    texts: dict[int, Any] = {}

    def work(process: int) -> None:
        texts[process] = ensure_teacher_text(source, data(), author(scribes[process]), process=process, processes=3)

    threads = [threading.Thread(target=work, args=(process,)) for process in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(texts) == [0, 1, 2]
    assert all(text.complete for text in texts.values())
    assert sorted(asked for scribe in scribes for asked in scribe.asked) == sorted(row["prompt"] for row in ROWS)
    assert [len(scribe.asked) for scribe in scribes] == [9, 9, 9]
    prompt = prompt_of(data()[20])
    assert len({tuple(text.completion(source, prompt).ids) for text in texts.values()}) == 1
    assert len(kept(file)) == 27


def test_two_runs_at_once_write_everything_once(source: TeacherSamples, file: Path) -> None:
    scribes = [Scribe(), Scribe()]
    runs = [threading.Thread(target=ensure_teacher_text, args=(source, data(), author(scribe))) for scribe in scribes]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert len(scribes[0].asked) + len(scribes[1].asked) == len(kept(file)) == 27


def test_more_data_is_answered_in_the_same_file(source: TeacherSamples, file: Path) -> None:
    ensure_teacher_text(source, data(ROWS[:20]), author(Scribe()))
    text = ensure_teacher_text(source, data(ROWS[::-1][:15]), author(more := Scribe()))
    assert sorted(more.asked) == sorted(row["prompt"] for row in ROWS[20:])
    order = [*ROWS[::-1][:15], *ROWS[:12]]
    assert [line["prompt"] for line in kept(file)] == [row["prompt"] for row in order]
    with pytest.raises(DataError, match=r"t\.jsonl has no answer to a prompt of 2 tokens: run abkd generate"):
        text.completion(source, [5, 5])


def test_without_a_file_the_settings_and_the_prompts_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABKD_CACHE", str(tmp_path))
    source = TeacherSamples(temperature=0)

    def place(source: TeacherSamples = source, rows: Any = ROWS, **options: Any) -> Path:
        return ensure_teacher_text(source, data(rows), author(Scribe(), **options)).stores[source].path

    first = place()
    assert first.parent == tmp_path / "teacher-text"
    assert place(rows=ROWS[::-1]) == place(TeacherSamples(temperature=0.0)) == first
    others = [place(TeacherSamples()), place(rows=ROWS[1:]), place(max_completion_length=8), place(server=True)]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_completion_length": 8}, "max_completion_length: expected 8, got 16"),
        ({"identity": {"teacher": "other", "tokenizer": "two"}}, "teacher: expected 'other', got 'one'"),
        ({"identity": {"teacher": "one", "tokenizer": "other"}}, "tokenizer: expected 'other', got 'two'"),
        ({"generation_kwargs": {"temperature": 0.5}}, r"temperature: expected 0\.5, got 0\.0"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, "generation_kwargs: expected {'no_repeat.*, got {}"),
        ({"max_length": 32}, "max_length: expected 32, got 64"),
        ({"server": True}, "written by: expected 'a server', got 'the model here'"),
    ],
    ids=str,
)
def test_text_that_was_written_otherwise_is_refused(source: TeacherSamples, change: Any, message: str) -> None:
    ensure_teacher_text(source, data(), author(Scribe()))
    with pytest.raises(OutputDirError, match=message) as refused:
        ensure_teacher_text(source, data(), replace(author(other := Scribe()), **change))
    assert "set another file, or remove t.json and t.jsonl to generate the text again" in str(refused.value)
    assert other.asked == []


def test_a_file_of_somebody_else_is_not_touched(source: TeacherSamples, file: Path) -> None:
    for name in ("t.jsonl", "t.jsonl.part-3"):
        stranger = file.with_name(name)
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_text("mine\n")
        with pytest.raises(OutputDirError, match=r"without a t\.json that records how it was written"):
            ensure_teacher_text(source, data(), author(Scribe()))
        assert stranger.read_text() == "mine\n"
        stranger.unlink()


def test_a_damaged_line_is_named(source: TeacherSamples, file: Path) -> None:
    ensure_teacher_text(source, data(), author(Scribe()))
    lines = file.read_bytes().splitlines(keepends=True)
    for damaged in (b'{"prompt": \n', lines[4].replace(b'"finished"', b'"finshed"'), lines[4].replace(b"[", b"[-")):
        file.write_bytes(b"".join([*lines[:4], damaged, *lines[5:]]))
        with pytest.raises(DataError, match=r"t\.jsonl, line 5 is corrupt: remove the line"):
            ensure_teacher_text(source, data(), author(Scribe()))
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # truncated: what is missing is generated again
    ensure_teacher_text(source, data(), author(again := Scribe()))
    assert again.asked == [ROWS[-1]["prompt"]]
    assert file.read_bytes() == b"".join(lines)


def test_a_full_disk_keeps_what_is_there(source: TeacherSamples, file: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(
            StorageError, match="What was written is kept; free disk space and run the same command again"
        ) as full:
            ensure_teacher_text(source, data(), author(first := Scribe()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.exit_code == 4
    ensure_teacher_text(source, data(), author(second := Scribe()))
    assert 0 < len(second.asked) < 27
    assert sorted({*first.asked, *second.asked}) == sorted(row["prompt"] for row in ROWS)
    assert [line["prompt"] for line in kept(file)] == [row["prompt"] for row in ROWS]


def test_a_privileged_teacher_writes_with_its_context(source: TeacherSamples) -> None:
    tree = Privileged(source, "be nice ")
    rows = data(context="be nice ", privileged=True)
    text = ensure_teacher_text(tree, rows, author(scribe := Scribe()))
    assert sorted(scribe.asked) == sorted("be nice " + row["prompt"] for row in ROWS)
    stream = open_source(tree, Generators(student=lambda *_, **__: [], teacher_text=text))
    for row, (sequence,) in zip(rows, stream.draw(list(rows), NOW), strict=True):
        ids = text.completion(source, teacher_prompt_of(row)).ids
        assert sequence["input_ids"] == prompt_of(row) + ids
        assert sequence.get("teacher_input_ids") == teacher_prompt_of(row) + ids


def test_every_teacher_of_a_tree_is_asked(tmp_path: Path) -> None:
    one, two = (TeacherSamples(temperature=t, file=str(tmp_path / f"{t}.jsonl")) for t in (0, 1))
    tree = Mix(0.5, Union(one, Dataset()), Union(Privileged(one, ""), two))
    rows = data(context="", privileged=True)
    text = ensure_teacher_text(tree, rows, author(scribe := Scribe()))
    assert len(scribe.asked) == 2 * 27  # the same prompts with an empty context are not sent again
    assert text.stores.keys() == {one, two}


def test_what_cannot_be_meant(source: TeacherSamples) -> None:
    same = replace(source, temperature=1.0)
    with pytest.raises(ConfigError, match="have the same"):
        ensure_teacher_text(Union(source, same), data(), author(Scribe()))
    with pytest.raises(ConfigError, match=r"answered 0 of 27 prompts.*run abkd generate"):
        ensure_teacher_text(source, data(), author(None))
    for beams in ({"num_beams": 4}, {"repetition_penalty": 1.1}):
        with pytest.raises(ConfigError, match=f"a server supports only .*{next(iter(beams))}"):
            ensure_teacher_text(source, data(), author(Scribe(), server=True, generation_kwargs=beams))
    with pytest.raises(ConfigError, match=r"file must end in \.jsonl"):
        TeacherSamples(file="text.txt")
    with pytest.raises(ConfigError, match="num_beams"):
        TeacherSamples(num_beams=0)
    with pytest.raises(ConfigError, match="ensure_teacher_text"):
        source.open(Generators(student=lambda *_, **__: []))
