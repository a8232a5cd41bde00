"""What the engine asks of a modality: models, data and what is measured. Text and images each answer in a file."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from abkd.config import DistillConfig
from abkd.data import Batch
from abkd.data.prepared import ExampleDataset
from abkd.errors import ConfigError
from abkd.models.rows import ModelRows
from abkd.ops import ChunkPlan, Rows, TeacherRows, plan_chunks
from abkd.setting_rules import teacher_problem
from abkd.storage import atomic_write, read_json, strict_json
from abkd.teachers import TeacherReader

if TYPE_CHECKING:
    from abkd.trainer._trainer import DistillTrainer

logger = logging.getLogger("abkd")

RUN_FILE = "run.json"
Collate = Callable[[Sequence[Any]], dict[str, Batch]]


@dataclass(frozen=True)
class Models:
    """The student, and where p comes from, as rows over the same classes; and the tokenizer they share, if any.

    ``teacher`` is None where only the labels teach.
    """

    student: ModelRows
    teacher: TeacherReader | None
    tokenizer: Any
    classes: int
    teacher_names: Sequence[str] = ()
    teacher_revision: str | None = None
    teacher_tokenizers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def padding(self) -> int:
        """What stands in padding: it is masked and never trained."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None), 0))


class Modality(ABC):
    """One kind of rows.

    ``row_noun``: what a formula calls them. ``merges_adapters``: whether a student is always saved with them merged.
    """

    row_noun: ClassVar[str]
    merges_adapters: ClassVar[bool] = False

    @abstractmethod
    def models(
        self, model: Any, teacher: Any, args: DistillConfig, processing_class: Any, peft_config: Any, train: Any
    ) -> Models:
        """Load what is given by name, and prove that student, teacher and training data fit each other.

        Raises:
            ConfigError, VocabularyError: they do not.
        """

    @abstractmethod
    def data(
        self,
        dataset: Any,
        models: Models,
        args: DistillConfig,
        name: str,
        chunks: Sequence[Sequence[int]] | None = None,
    ) -> ExampleDataset | None:
        """The checked examples of a data set; ``chunks`` of plain text go with those to train on.

        Raises:
            DataError, ConfigError: rows that cannot be used.
        """

    def teacher_queries(self, train: Any, args: DistillConfig) -> Iterable[Any]:
        """What a run asks its teacher about its training set, as examples."""
        return train

    @abstractmethod
    def collator(self, models: Models) -> Collate:
        """What makes batches of examples."""

    @abstractmethod
    def max_rows(self, args: DistillConfig) -> int:
        """How many rows a batch has at most."""

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        """``[N]`` each: what is measured at evaluation beside the distances."""
        return {}

    @abstractmethod
    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What is reported, out of sums over ``totals["rows"]`` rows beside the distances."""

    @abstractmethod
    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        """Say what the first evaluation tells about the teacher."""

    @abstractmethod
    def before_training(self, trainer: DistillTrainer) -> None:
        """Say what is worth knowing before hours are spent."""

    def describe(self, models: Models, train: Any) -> dict[str, Any]:
        """What belongs into the record of a run beside what all have."""
        return {}

    @abstractmethod
    def save_extras(self, models: Models, directory: Path, train: Any) -> None:
        """Complete a saved student by what it takes to load it."""


def modality_of(task: str) -> Modality:
    """The modality of a task."""
    if task == "image-classification":
        from abkd.trainer._images import ImageClassification

        return ImageClassification()
    if task == "zero-shot-image-classification":
        from abkd.trainer._clip import BaseToNew

        return BaseToNew()
    from abkd.trainer._text import Text

    return Text()


def wanted_teachers(teacher: Any, args: DistillConfig) -> list[Any]:
    """The teachers that were given, as many as this kind of teacher takes; none where only the labels teach.

    Raises:
        ConfigError: too few or too many.
    """
    given = [] if teacher is None else list(teacher) if type(teacher) in (list, tuple) else [teacher]
    labels_alone = not args.objective().ever_needs_teacher()
    if labels_alone and args.teacher_model_server_url:
        return [each for each in given if isinstance(each, str)]  # at most its name at the server
    problem = teacher_problem(args, len(given))
    if problem is not None:
        raise ConfigError(problem)
    return given


def check_known(reader: TeacherReader | None, args: DistillConfig) -> None:
    """Raise ConfigError where whole distributions are looked at, and a cache has a part of them only."""
    if reader is None or reader.exact:
        return
    terms = args.objective().all_terms()
    divergences: list[Any] = [term.divergence for term in terms]
    looking = [term.row_weight for term in terms if term.row_weight is not None]
    looking += [divergence for divergence in divergences if divergence.needs_full_distribution]
    if looking:
        raise ConfigError(
            f"{looking[0]!r} looks at whole distributions, and {args.teacher!r} knows the likeliest classes only: take "
            "teacher: HiddenCache(), which knows all, or Live()"
        )


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ConfigError where both are made of the same weights."""
    mine = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in mine for parameter in teacher.parameters()):
        raise ConfigError(
            "student and teacher share weights, so training the one would change the other: load the model twice, or "
            "give copy.deepcopy(teacher) as the student"
        )


def load_chunk_plan(args: DistillConfig, rows: int, classes: int) -> ChunkPlan:
    """The op's chunk size and implementation: those recorded in this output directory, else chosen now."""
    known = None if args.overwrite_output_dir else read_record(Path(str(args.output_dir))).get("plan")
    if known:
        try:
            return ChunkPlan(**known)
        except TypeError:
            logger.warning("abkd: the plan in %s cannot be read; it is chosen anew", RUN_FILE)
    return plan_chunks(rows, classes, args.device, memory_budget_mb=args.memory_budget_mb)


def save_chunk_plan(directory: Path, plan: ChunkPlan) -> None:
    """Keep the plan that a run has come to (smaller where memory did not suffice), for its resumption."""
    known = read_record(directory)
    if known and known.get("plan") != asdict(plan):
        atomic_write(directory / RUN_FILE, strict_json(known | {"plan": asdict(plan)}).encode())


def read_record(directory: Path) -> dict[str, Any]:
    """The values in ``run.json``; none where it is not there or, which is said, cannot be read."""
    file = directory / RUN_FILE
    if not file.is_file():
        return {}
    try:
        known = read_json(file)
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        logger.warning("abkd: %s cannot be read, so nothing is compared with it; it is written anew", file)
        return {}
    return known
