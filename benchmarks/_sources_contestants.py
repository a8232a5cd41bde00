"""The contestants of ``benchmarks.sources``: one student, one loss, and several sources and teachers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from abkd import DistillConfig, DistillTrainer, ForwardKL
from abkd.data import TokenizedDataset
from abkd.data.vocabulary import vocabulary_size
from abkd.demo.teacher import demo_teacher_path
from abkd.models.language import CausalRows
from abkd.sources import Replay, Source, StudentSamples
from abkd.teachers import HiddenCache, TopKCache, identity
from abkd.teachers.caches import CachedTeacher
from abkd.teachers.caches._build import build_cache
from benchmarks._step_contestants import CONTESTANTS as OF_A_STEP
from benchmarks._step_pairs import Pair
from benchmarks._training import Clock, Ours, arguments

SFT, LABELS, LIVE = "sft", "abkd labels only", "abkd live teacher"
TOP_K, HIDDEN, HALF = "abkd top-k cache", "abkd hidden cache", "abkd hidden cache, bf16"
ON_POLICY, REPLAY = "abkd on-policy", "abkd replay"

CACHES: dict[str, CachedTeacher] = {
    TOP_K: TopKCache(k=64),
    HIDDEN: HiddenCache(dtype="float32"),
    HALF: HiddenCache(dtype="bfloat16"),
}
FRESH = 0.25
WRITTEN_TOKENS = 64  # about the length of the longest answer in the demo's text


class LoggingClock(Clock):
    """Records when each step ended, and its logs."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, Any]] = []

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        super().on_log(logs=logs)
        if "loss" in logs:
            self.logs.append(dict(logs))


@dataclass(frozen=True)
class Contestant:
    """A student in training; ``options`` are for its config. ``live``: with the teacher's model in memory."""

    name: str
    live: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cache(self) -> CachedTeacher | None:
        """The cache that it reads, if any."""
        return CACHES.get(self.name)

    def trainer(
        self,
        pair: Pair,
        place: Place,
        output_dir: str,
        steps: int,
        clock: Clock,
        kind: type[DistillTrainer] = Ours,
        **options: Any,
    ) -> DistillTrainer:
        """The trainer of ``pair.student``, for our own contestants."""
        teacher: Any = pair.teacher if self.live else None
        given = {**arguments(steps, output_dir, pair.batch_size), "max_length": pair.max_length, **self.options}
        if self.cache is not None:
            teacher, given["teacher"] = place.teacher, place.of(self.name)
        return kind(
            pair.student,
            teacher,
            DistillConfig(**{**given, **options}),
            train_dataset=TokenizedDataset(pair.examples),
            processing_class=pair.tokenizer,
            callbacks=[clock],
        )

    def run(self, pair: Pair, place: Place, steps: int, clock: Clock, output_dir: str, **options: Any) -> None:
        """Train ``pair.student`` for some steps on the rows in order."""
        if self.name == SFT:
            OF_A_STEP["sft"].run(pair, steps, clock, output_dir)
        else:
            self.trainer(pair, place, output_dir, steps, clock, **options).train()


@dataclass(frozen=True)
class Place:
    """The location of a pair's caches and of its teacher."""

    pair: str
    folder: Path

    @property
    def teacher(self) -> str:
        """The path of the teacher; a cache needs one."""
        return demo_teacher_path() if self.pair == "demo" else str(self.folder / "teacher")

    def of(self, name: str) -> CachedTeacher:
        """The cache of a contestant, in its folder."""
        spec: Any = CACHES[name]
        return replace(spec, path=str(self.folder / name.replace(" ", "-")))

    def build(self, name: str, pair: Pair) -> dict[str, Any]:
        """Build the cache of a contestant for the rows of ``pair``; returns its times and its size on disk.

        ``per_token`` is the seconds from the first batch to the last, per trained token; ``once`` is the rest of
        the seconds (the head, the manifest, the look-up of existing shards).
        """
        self._put_teacher(pair)
        cache = self.of(name)
        seen: list[tuple[float, int]] = []
        began = time.perf_counter()
        built = build_cache(
            cache,
            pair.examples,
            lambda: CausalRows(pair.teacher.eval()),
            identity=identity(self.teacher, None, pair.tokenizer),
            tokens=vocabulary_size(pair.tokenizer),
            batch_size=pair.batch_size,
            progress=lambda done, _: seen.append((time.perf_counter(), done)),
        )
        seconds = time.perf_counter() - began
        per_token = _slope(seen) if len(seen) > 1 else seconds / built.rows
        head = built.folder / "head.safetensors"
        return {
            "seconds": seconds,
            "per_token": per_token,
            "once": max(0.0, seconds - per_token * built.rows),
            "rows": built.rows,
            "bytes_per_token": built.bytes_per_row,
            "head_bytes": head.stat().st_size if head.exists() else 0,
        }

    def _put_teacher(self, pair: Pair) -> None:
        folder = Path(self.teacher)
        if not folder.exists():  # randomly initialised models are not on disk yet
            pair.teacher.save_pretrained(folder)
            pair.tokenizer.save_pretrained(folder)


def _slope(seen: Sequence[tuple[float, int]]) -> float:
    (start, first), (end, last) = seen[0], seen[-1]
    return (end - start) / (last - first)


def _written(source: Source) -> dict[str, Any]:
    return {
        "divergence": ForwardKL(),
        "source": source,
        "max_completion_length": WRITTEN_TOKENS,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }


CONTESTANTS = {
    each.name: each
    for each in (
        Contestant(SFT),
        Contestant(LABELS, options={"ce_weight": 1.0, "kd_weight": 0.0}),
        Contestant(LIVE, live=True, options={"divergence": ForwardKL()}),
        *(Contestant(name, options={"divergence": ForwardKL()}) for name in CACHES),
    )
}
WRITTEN = {
    each.name: each
    for each in (
        Contestant(ON_POLICY, live=True, options=_written(StudentSamples())),
        # the capacity is one step's sequences, so that it is full after the first step, which is not counted
        Contestant(REPLAY, live=True, options=_written(Replay(StudentSamples(), capacity=8, fresh=FRESH))),
    )
}
