"""What a task is: a stateless ``Task``, which opens models and data that are proven to fit as an ``OpenTask``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from abkd.config import DistillConfig
from abkd.data import Batch
from abkd.data.prepared import ExampleDataset
from abkd.models.folders import missing_folder
from abkd.models.rows import ModelRows
from abkd.ops import Rows, TeacherRows
from abkd.settings import DataSettings
from abkd.teachers import TeacherReader

Collate = Callable[[Sequence[Any]], dict[str, Batch]]


@dataclass(frozen=True)
class Given:
    """The models and data of a run, by name or as objects, before anything is loaded.

    ``teacher``: one, several, or None. ``pretrain``: plain text for ``lm_coef``, as token lists or as rows with a
    column ``text``.
    """

    student: Any
    teacher: Any = None
    train: Any = None
    held_out: Any = None
    pretrain: Any = None
    tokenizer: Any = None
    peft_config: Any = None


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
        """The token id of padding, which is masked and never trained."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None), 0))


class CacheJob(NamedTuple):
    """Everything that building a teacher cache takes: the arguments of :func:`abkd.teachers.caches.build_cache`."""

    examples: Iterable[Any]
    load: Callable[[], ModelRows]
    identity: Mapping[str, Any]
    about: Mapping[str, Any]
    batch_size: int = 8
    tokens: int | None = None
    workers: int = 0


@dataclass
class OpenTask(ABC):
    """The models and data of one run; subclasses say what is particular to a task.

    Attributes:
        train, held_out: checked examples; None where none were given.
    """

    args: DistillConfig
    models: Models
    train: ExampleDataset | None = None
    held_out: ExampleDataset | None = None

    @abstractmethod
    def prepare(self, dataset: Any) -> ExampleDataset:
        """The checked examples of rows to evaluate on.

        Raises:
            DataError, ConfigError: rows that cannot be used.
        """

    @property
    @abstractmethod
    def collate(self) -> Collate:
        """The function that makes a batch of examples."""

    @property
    @abstractmethod
    def max_rows(self) -> int:
        """Maximum number of rows in a training batch."""

    def teacher_queries(self) -> Iterable[Any]:
        """The examples that a run sends to its teacher in training."""
        train: Any = self.train
        return train

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        """``[N]`` each: what is measured at evaluation besides the distances."""
        return {}

    @abstractmethod
    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Metrics from sums over ``totals["rows"]`` held-out rows, besides the distances."""

    @abstractmethod
    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        """Log what the first evaluation shows about the teacher."""

    @abstractmethod
    def before_training(self, *, sharded: bool, writes: bool, evaluates_first: bool) -> None:
        """Log advice that is worth knowing before hours are spent.

        Args:
            sharded: the student's parameters are sharded, so that no forward pass is possible here.
            writes: sequences are written during training.
            evaluates_first: an evaluation comes before the first step.
        """

    def describe(self) -> dict[str, Any]:
        """Entries of a run's record besides those that every run has; there are rows to train on."""
        return {}

    @abstractmethod
    def save_extras(self, directory: Path) -> None:
        """Complete a saved student by the files that loading it takes."""

    def with_student(self, student: ModelRows) -> OpenTask:
        """The same with another module in the student's place, such as its final form."""
        return replace(self, models=replace(self.models, student=student))


class Task(ABC):
    """What is distilled. Stateless, one file each; adding one changes nothing but its file and the export line.

    Attributes:
        name: Hugging Face's name of the task.
        row_noun: how a formula names the rows, such as "response tokens".
        unit: one row in a message, such as "token".
        fields: the settings and recipe keys that only some tasks take, and this one does.
        metrics: names of the held-out metrics that it adds to those of every task.
        data_hint: the way out where a recipe names no data.
        merges_adapters: whether a student is always saved with its adapters merged.
        peft_task_type: what PEFT calls the task.
        finds_held_out: whether :meth:`read` may find rows to evaluate on next to those that are named.
    """

    name: ClassVar[str]
    row_noun: ClassVar[str]
    unit: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    metrics: ClassVar[tuple[str, ...]]
    data_hint: ClassVar[str]
    merges_adapters: ClassVar[bool] = False
    peft_task_type: ClassVar[str | None] = None
    finds_held_out: ClassVar[bool] = False

    def model_problem(self, name: str, field: str, allow_code: Sequence[str]) -> str | None:
        """Why the model of this name cannot be loaded, as far as its name and its folder show; None if they do not.

        Args:
            field: the recipe key that names it.
            allow_code: the modules that may be imported for it.
        """
        return f"{field}: {fault}" if (fault := missing_folder(name)) else None

    def data_problems(self, data: DataSettings) -> list[str]:
        """One sentence for each way in which the data that is named does not suit the task."""
        return []

    @abstractmethod
    def read(self, data: DataSettings, *, seed: int) -> tuple[Any, Any]:
        """The rows to train on and those to evaluate on (or None) that a recipe names.

        Args:
            seed: of the rows that are held out where no others are named.

        Raises:
            DataError: a file that cannot be used.
        """

    @abstractmethod
    def open(self, given: Given, args: DistillConfig) -> OpenTask:
        """Load what is given by name, and prove that student, teacher and data fit each other.

        Raises:
            ConfigError, DataError, VocabularyError: they do not.
        """

    @abstractmethod
    def cache_job(self, given: Given, args: DistillConfig, teacher: str) -> CacheJob:
        """What ``abkd cache`` stores of the teacher of this name for a run, without loading the student.

        Raises:
            ConfigError: no teacher of this task can be cached.
        """
