"""The teacher's text: completions generated before training, looked up by their prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from abkd.data import Example, prompt_of, teacher_prompt_of
from abkd.data.text import completion_text, prompt_text
from abkd.errors import ConfigError, DataError
from abkd.generation import Completion, Sampling, completions, settle
from abkd.paths import cache_directory
from abkd.schedules import Schedule
from abkd.sources._combine import Privileged
from abkd.sources._store import Answers, Part, Row, Store, key_of
from abkd.sources._teacher_samples import TeacherSamples
from abkd.sources._types import Source, stage_sources

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")

_REAL = ("temperature", "top_p")  # 0 and 0.0 are the same file
_PAUSE = 0.2  # seconds between checks for the text of other processes

Progress = Callable[[int, int, int], object]
"""Called with (prompts answered by this process, prompts it has to answer, tokens generated)."""


class BatchGenerateFn(Protocol):
    """Completes prompts, each within its token limit; yields them as they finish, by the index of the prompt."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limits: Sequence[int],
        generation_kwargs: Mapping[str, object],
    ) -> Iterator[Mapping[int, Completion]]: ...


@dataclass(frozen=True)
class TeacherWriter:
    """The teacher as a text generator: everything that its text depends on besides the prompt and the source.

    Args:
        identity: teacher and tokenizer, from ``abkd.teachers.identity``.
        tokenizer: the tokenizer of the prompts.
        max_length: maximum tokens of prompt and completion together.
        max_completion_length: maximum tokens of a completion.
        write: :func:`write_with` a model, or a ``Server``; None if existing text must suffice.
        generation_kwargs: settings for ``GenerationConfig`` that override those of the source.
        server: whether ``write`` is a server.
    """

    identity: Mapping[str, object]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_completion_length: int
    write: BatchGenerateFn | None = None
    generation_kwargs: Mapping[str, object] | None = None
    server: bool = False


class TeacherText:
    """The teacher's completions for the ``TeacherSamples`` of a source, as in ``Generators.teacher_text``.

    ``stores``: the files of each. ``complete``: whether every prompt had been answered when they were read.
    """

    def __init__(
        self, stores: Mapping[TeacherSamples, Store], answers: Mapping[TeacherSamples, Answers], *, complete: bool
    ) -> None:
        self.stores, self.complete = stores, complete
        self._answers = answers

    def completion(self, source: TeacherSamples, prompt: Sequence[int]) -> Completion:
        """The teacher's completion of a prompt.

        Raises:
            DataError: there is none, because the text was generated for other data.
        """
        answers, key = self._answers[source], key_of(prompt)
        if key not in answers:
            raise DataError(
                f"{self.stores[source].path} has no answer to a prompt of {len(prompt)} tokens: "
                "run abkd generate with this recipe, which adds what is missing"
            )
        return answers[key]


class _Request(NamedTuple):
    prompt: array[int]
    limit: int


def write_with(
    load: Callable[[], nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    classes: int | None = None,
) -> BatchGenerateFn:
    """Generation with a local model; ``load`` is called when there is something to generate.

    A sampled completion is a function of the prompt (see :func:`abkd.generation.write_completions`), not of the run's
    seed: the text is generated once and used by all runs.
    """

    def write(
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limits: Sequence[int],
        generation_kwargs: Mapping[str, object],
    ) -> Iterator[Mapping[int, Completion]]:
        return completions(
            load(),
            tokenizer,
            prompts,
            sampling,
            max_new_tokens=limits,
            classes=classes,
            batch_size=batch_size,
            generation_kwargs=generation_kwargs,
        )

    return write


def ensure_teacher_text(
    source: Source | Schedule,
    examples: Iterable[Example],
    author: TeacherWriter,
    *,
    process: int = 0,
    processes: int = 1,
    wait: bool = True,
    progress: Progress | None = None,
) -> TeacherText:
    """Load the teacher's text for every ``TeacherSamples`` in ``source``, and generate what is missing.

    Every batch is on disk before the next one starts, so a killed run loses at most one batch. Each process writes a
    fixed share, and the last one assembles the file; all must see the same directory. Greedy and sampled text is the
    same, up to the rounding of the model, for every batch size and number of processes, and whether or not generation
    was interrupted; sampled beams depend on the other prompts in their batch.

    Args:
        examples: tokenised rows; a source inside ``Privileged`` uses the teacher's own prompts.
        process, processes: rank and world size.
        wait: return when all processes are done; otherwise when this one is.
        progress: called after every batch.

    Raises:
        ConfigError: invalid settings, or prompts without text and no teacher to generate it.
        OutputDirError: an existing file was written with other settings, or by another program.
        ServerError, StorageError: text generated so far is kept; the same call continues.
    """
    requests = _requests(source, examples, author)
    jobs = {
        each: _Job(_store(each, author, wanted), each, wanted, author, progress) for each, wanted in requests.items()
    }
    if len({job.store.path for job in jobs.values()}) < len(jobs):
        raise ConfigError(f"each TeacherSamples needs its own file, but several in {source!r} have the same")
    for job in jobs.values():
        job.store.check()
    for job in jobs.values():
        job.write(process, processes)
    for job in jobs.values():
        job.assemble(wait=wait)
    return TeacherText(
        {each: job.store for each, job in jobs.items()},
        {each: job.answers for each, job in jobs.items()},
        complete=all(job.complete for job in jobs.values()),
    )


def _requests(
    source: Source | Schedule, examples: Iterable[Example], author: TeacherWriter
) -> dict[TeacherSamples, dict[str, _Request]]:
    """The prompts of each ``TeacherSamples``, by key, in the order of the data."""
    wanted = dict.fromkeys(use for stage in stage_sources(source) for use in uses(stage))
    requests: dict[TeacherSamples, dict[str, _Request]] = {each: {} for each, _ in wanted}
    for example in examples:
        mine = prompt_of(example)
        limit = min(author.max_completion_length, author.max_length - len(mine))
        for each, privileged in wanted:
            prompt = teacher_prompt_of(example) if privileged else mine
            requests[each].setdefault(key_of(prompt), _Request(array("i", prompt), limit))
    return requests


def uses(source: Source, *, privileged: bool = False) -> Iterator[tuple[TeacherSamples, bool]]:
    """Each ``TeacherSamples`` in a tree, and whether it is inside a ``Privileged``."""
    if isinstance(source, TeacherSamples):
        yield source, privileged
    for part in source.parts:
        yield from uses(part, privileged=privileged or isinstance(source, Privileged))


def _store(source: TeacherSamples, author: TeacherWriter, requests: Mapping[str, _Request]) -> Store:
    sampling, rest = settle(source.sampling, author.generation_kwargs)
    if author.server and (sampling.num_beams > 1 or rest):
        named = ", ".join(rest) or f"num_beams={sampling.num_beams}"
        raise ConfigError(
            f"a server supports only temperature, top_p and top_k, got {named}: remove it, or generate with a local "
            "teacher (without teacher_model_server_url)"
        )
    about = {
        **{name: author.identity[name] for name in ("teacher", "tokenizer")},
        **{name: float(value) if name in _REAL else value for name, value in dataclasses.asdict(sampling).items()},
        "generation_kwargs": rest,
        "max_completion_length": author.max_completion_length,
        "max_length": author.max_length,
        "written by": "a server" if author.server else "the model here",
    }
    if source.file is not None:
        return Store(Path(source.file).expanduser(), about)
    digest = hashlib.blake2b(json.dumps([about, sorted(requests)], sort_keys=True).encode(), digest_size=8)
    return Store(cache_directory() / "teacher-text" / f"{digest.hexdigest()}.jsonl", about)


@dataclass
class _Job:
    """The generation of one file. ``complete``: every prompt is answered and the file is assembled."""

    store: Store
    source: TeacherSamples
    requests: Mapping[str, _Request]
    author: TeacherWriter
    progress: Progress | None
    answers: Answers = field(default_factory=Answers)
    complete: bool = False

    def write(self, process: int, processes: int) -> None:
        """Generate this process's share of what is missing."""
        missing = self._missing(self.requests)
        self.complete = not missing and not self.store.parts()
        if missing and self.author.write is None:
            raise ConfigError(
                f"the teacher has answered {len(self.requests) - len(missing)} of {len(self.requests)} prompts in "
                f"{self.store.path}, and this run does not load it: run abkd generate for the others first"
            )
        # a share of all prompts, not of the missing ones, of which another process may see others
        by_length = sorted(self.requests, key=lambda key: (-len(self.requests[key].prompt), key))
        share = by_length[process::processes]
        if set(share).isdisjoint(missing):
            return
        self.store.begin()
        with self.store.part(process) as part:
            self._write(self._missing(share), part)

    def assemble(self, *, wait: bool) -> None:
        """Assemble the file from all parts if nothing is missing, or with ``wait`` once nothing is."""
        while not self.complete:
            seen = self.store.stamp()
            self.complete = self.store.merge(self.requests)
            if self.complete:
                self.answers = self.store.read()
            elif not wait:
                return
            while not self.complete and self.store.stamp() == seen:
                time.sleep(_PAUSE)

    def _missing(self, keys: Iterable[str]) -> list[str]:
        self.answers = self.store.read()
        return [key for key in keys if key not in self.answers]

    def _write(self, keys: Sequence[str], part: Part) -> None:
        logger.info("abkd: the teacher generates answers to %d prompts: %s", len(keys), self.store.path)
        assert self.author.write is not None
        requests = [self.requests[key] for key in keys]
        done = tokens = 0
        prompts, limits = [each.prompt for each in requests], [each.limit for each in requests]
        sampling, rest = settle(self.source.sampling, self.author.generation_kwargs)
        for batch in self.author.write(prompts, sampling, limits, rest):
            part.add(self._row(keys[i], prompts[i], written) for i, written in batch.items())
            done, tokens = done + len(batch), tokens + sum(len(written.ids) for written in batch.values())
            if self.progress is not None:
                self.progress(done, len(keys), tokens)

    def _row(self, key: str, prompt: Sequence[int], written: Completion) -> Row:
        tokenizer = self.author.tokenizer
        return Row(key, prompt_text(prompt, tokenizer), completion_text(written.ids, tokenizer), written)
