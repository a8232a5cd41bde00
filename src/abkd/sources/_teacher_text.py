"""What the teacher writes beforehand: what is missing is written, what is there is found by its prompt."""

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
from typing import Any, NamedTuple, Protocol

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

logger = logging.getLogger("abkd")

_REAL = ("temperature", "top_p")  # 0 and 0.0 are the same file
_PAUSE = 0.2  # seconds between two looks at what other processes have written

Progress = Callable[[int, int, int], object]
"""Called with (prompts answered by this process, prompts it has to answer, tokens written)."""


class BatchGenerateFn(Protocol):
    """Completes prompts, each within its limit of tokens; gives them as they come, by the index of the prompt."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limits: Sequence[int],
        generation_kwargs: Mapping[str, Any],
    ) -> Iterator[Mapping[int, Completion]]: ...


@dataclass(frozen=True)
class TeacherWriter:
    """The teacher as one who writes: everything that its text depends on beside the prompt and the source.

    Args:
        identity: which teacher and tokenizer, as ``abkd.teachers.identity`` tells.
        tokenizer: of the token ids of the prompts.
        max_length: tokens of prompt and completion together.
        max_completion_length: tokens of a completion.
        write: :func:`write_with` a model, or a ``Server``; None where what is there must be enough.
        generation_kwargs: settings for ``GenerationConfig`` that win over those of the source.
        server: whether ``write`` asks one.
    """

    identity: Mapping[str, Any]
    tokenizer: Any
    max_length: int
    max_completion_length: int
    write: BatchGenerateFn | None = None
    generation_kwargs: Mapping[str, Any] | None = None
    server: bool = False


class TeacherText:
    """What the teacher has written for the ``TeacherSamples`` of a source; ``Writers.teacher_text`` holds one.

    ``stores``: where the text of each lies. ``complete``: whether every prompt was answered when it was read.
    """

    def __init__(
        self, stores: Mapping[TeacherSamples, Store], answers: Mapping[TeacherSamples, Answers], *, complete: bool
    ) -> None:
        self.stores, self.complete = stores, complete
        self._answers = answers

    def completion(self, source: TeacherSamples, prompt: Sequence[int]) -> Completion:
        """What the teacher wrote to a prompt.

        Raises:
            DataError: nothing; the data is not what the text was written for.
        """
        answers, key = self._answers[source], key_of(prompt)
        if key not in answers:
            raise DataError(
                f"{self.stores[source].path} has no answer to a prompt of {len(prompt)} tokens: "
                "abkd generate, with the recipe of this run, writes what is missing"
            )
        return answers[key]


class _Asked(NamedTuple):
    prompt: array[int]
    limit: int


def write_with(
    load: Callable[[], Any], tokenizer: Any, *, batch_size: int, classes: int | None = None
) -> BatchGenerateFn:
    """Writing with a model that runs here; ``load`` is asked for it when there is something to write.

    A drawn completion is a function of the prompt (see :func:`abkd.generation.write_completions`), not of the run's
    seed: the text is written once and used by all runs.
    """

    def write(
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limits: Sequence[int],
        generation_kwargs: Mapping[str, Any],
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
    """The teacher's text for every ``TeacherSamples`` in ``source``: found, or written where it is missing.

    Every batch is on the disk when the next one begins, so a run that is killed loses one at most. Several processes
    write a fixed share each, and the one that comes last puts the file together; they must see the same directory.
    Greedy and drawn text is the same, up to the rounding of the model, for every batch size and number of processes,
    and whether or not the writing was interrupted; sampled beams depend on what shares their batch.

    Args:
        examples: tokenised rows; a source inside ``Privileged`` is asked with the teacher's own prompts.
        process, processes: this process, of how many.
        wait: return when all of them are done; otherwise when this one is.
        progress: told after every batch.

    Raises:
        ConfigError: settings that cannot be meant, or prompts without text and nobody to write it.
        OutputDirError: the file at hand was written with other settings, or by someone else.
        ServerError, StorageError: what was written until then is kept; the same call goes on from there.
    """
    asked = _asked(source, examples, author)
    jobs = {each: _Job(_store(each, author, wanted), each, wanted, author, progress) for each, wanted in asked.items()}
    if len({job.store.path for job in jobs.values()}) < len(jobs):
        raise ConfigError(f"each TeacherSamples needs a file of its own, but several of {source!r} name the same")
    for job in jobs.values():
        job.store.check()
    for job in jobs.values():
        job.write(process, processes)
    for job in jobs.values():
        job.put_together(wait=wait)
    return TeacherText(
        {each: job.store for each, job in jobs.items()},
        {each: job.answers for each, job in jobs.items()},
        complete=all(job.complete for job in jobs.values()),
    )


def _asked(
    source: Source | Schedule, examples: Iterable[Example], author: TeacherWriter
) -> dict[TeacherSamples, dict[str, _Asked]]:
    """Which prompts each ``TeacherSamples`` is asked, by key, in the order of the data."""
    wanted = dict.fromkeys(use for stage in stage_sources(source) for use in uses(stage))
    asked: dict[TeacherSamples, dict[str, _Asked]] = {each: {} for each, _ in wanted}
    for example in examples:
        mine = prompt_of(example)
        limit = min(author.max_completion_length, author.max_length - len(mine))
        for each, privileged in wanted:
            prompt = teacher_prompt_of(example) if privileged else mine
            asked[each].setdefault(key_of(prompt), _Asked(array("i", prompt), limit))
    return asked


def uses(source: Source, *, privileged: bool = False) -> Iterator[tuple[TeacherSamples, bool]]:
    """Each ``TeacherSamples`` in a tree, and whether it stands inside a ``Privileged``."""
    if isinstance(source, TeacherSamples):
        yield source, privileged
    for part in source.parts:
        yield from uses(part, privileged=privileged or isinstance(source, Privileged))


def _store(source: TeacherSamples, author: TeacherWriter, asked: Mapping[str, _Asked]) -> Store:
    sampling, rest = settle(source.sampling, author.generation_kwargs)
    if author.server and (sampling.num_beams > 1 or rest):
        named = ", ".join(rest) or f"num_beams={sampling.num_beams}"
        raise ConfigError(
            f"a server samples with temperature, top_p and top_k alone, and {named} is asked for: leave it out, or let "
            "the teacher write here (without teacher_model_server_url)"
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
    digest = hashlib.blake2b(json.dumps([about, sorted(asked)], sort_keys=True).encode(), digest_size=8)
    return Store(cache_directory() / "teacher-text" / f"{digest.hexdigest()}.jsonl", about)


@dataclass
class _Job:
    """The writing of one file. ``complete``: every prompt is answered, and the file is put together."""

    store: Store
    source: TeacherSamples
    asked: Mapping[str, _Asked]
    author: TeacherWriter
    progress: Progress | None
    answers: Answers = field(default_factory=Answers)
    complete: bool = False

    def write(self, process: int, processes: int) -> None:
        """Write this process's share of what is missing."""
        missing = self._missing(self.asked)
        self.complete = not missing and not self.store.parts()
        if missing and self.author.write is None:
            raise ConfigError(
                f"the teacher has answered {len(self.asked) - len(missing)} of {len(self.asked)} prompts in "
                f"{self.store.path}, and is not loaded in this run: let abkd generate write the others first"
            )
        # a share is a part of all prompts, not of the missing ones, which another process may see otherwise
        by_length = sorted(self.asked, key=lambda key: (-len(self.asked[key].prompt), key))
        share = by_length[process::processes]
        if set(share).isdisjoint(missing):
            return
        self.store.begin()
        with self.store.part(process) as part:
            self._write(self._missing(share), part)

    def put_together(self, *, wait: bool) -> None:
        """Make one file of all parts, if nothing is missing, or with ``wait`` as soon as nothing is."""
        while not self.complete:
            seen = self.store.stamp()
            self.complete = self.store.merge(self.asked)
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
        logger.info("abkd: the teacher answers %d prompts; its text goes to %s", len(keys), self.store.path)
        assert self.author.write is not None
        asked = [self.asked[key] for key in keys]
        done = tokens = 0
        prompts, limits = [each.prompt for each in asked], [each.limit for each in asked]
        sampling, rest = settle(self.source.sampling, self.author.generation_kwargs)
        for batch in self.author.write(prompts, sampling, limits, rest):
            part.add(self._row(keys[i], prompts[i], written) for i, written in batch.items())
            done, tokens = done + len(batch), tokens + sum(len(written.ids) for written in batch.values())
            if self.progress is not None:
                self.progress(done, len(keys), tokens)

    def _row(self, key: str, prompt: Sequence[int], written: Completion) -> Row:
        tokenizer = self.author.tokenizer
        return Row(key, prompt_text(prompt, tokenizer), completion_text(written.ids, tokenizer), written)
