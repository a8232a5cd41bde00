"""The source of text that the teacher generates once, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abkd.data import Example, prompt_of, teacher_prompt_of, with_completion
from abkd.errors import ConfigError
from abkd.origin import Origin
from abkd.sources._types import Generators, Source, Step, Stream

if TYPE_CHECKING:
    from abkd.generation import Sampling


@dataclass(frozen=True)
class TeacherSamples(Source):
    """Completions that the teacher generates for the prompts of the data before training (SeqKD, f-DISTILL).

    One completion per prompt, stored and reused: ``abkd generate`` generates what is missing, and so does
    ``abkd distill`` before it trains. The default is ancestral sampling; ``TeacherSamples(temperature=0)`` is greedy
    decoding, ``TeacherSamples(temperature=0, num_beams=5)`` the beam search of SeqKD (Kim and Rush, arXiv 1606.07947).

    Args:
        temperature: sampling temperature; 0 is greedy decoding.
        top_p: sample from the most probable tokens that together have this probability; 1 is all of them.
        top_k: sample from this many most probable tokens; 0 is all of them.
        num_beams: above 1, beam search; with a temperature above 0, beam sampling.
        file: the ``.jsonl`` in which the text is stored; None: a file in the cache directory.

    Raises:
        ConfigError: a setting outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    file: str | None = None

    def __post_init__(self) -> None:
        _ = self.sampling
        if not (self.file is None or (isinstance(self.file, str) and self.file.endswith(".jsonl"))):
            raise ConfigError(f"TeacherSamples: file must end in .jsonl, got {self.file!r}")

    @property
    def sampling(self) -> Sampling:
        """The settings for generation."""
        from abkd.generation import Sampling

        return Sampling(self.temperature, self.top_p, self.top_k, self.num_beams)

    def open(self, writers: Generators, *, privileged: bool = False, path: str = "source") -> Stream:
        if writers.teacher_text is None:
            raise ConfigError(f"{self!r} needs the teacher's text: see abkd.sources.ensure_teacher_text")
        return _TeacherStream(self, writers.teacher_text, privileged)


class _TeacherStream(Stream):
    """Looks up the completion of each prompt (of the teacher's own prompt, if that differs from the student's)."""

    def __init__(self, source: TeacherSamples, text: Any, privileged: bool) -> None:
        self.source, self.text, self.privileged = source, text, privileged
        self._given = self._clipped = self._empty = 0

    def draw(self, prompts: Sequence[Example], at: Step) -> list[list[Example]]:
        return [self._sequences(row) for row in prompts]

    def _sequences(self, row: Example) -> list[Example]:
        prompt = teacher_prompt_of(row) if self.privileged else prompt_of(row)
        written = self.text.completion(self.source, prompt)
        if not written.ids:
            self._empty += 1
            return []
        self._given += 1
        self._clipped += not written.finished
        return [with_completion(row, written.ids, Origin.TEACHER.code, privileged=self.privileged)]

    def logs(self) -> dict[str, float]:
        """``clipped_fraction``: completions without EOS; ``empty_completions``: how many were skipped."""
        given, clipped, empty = self._given, self._clipped, self._empty
        self._given = self._clipped = self._empty = 0
        found = {"empty_completions": float(empty)}
        return {**found, "clipped_fraction": clipped / given} if given else found
