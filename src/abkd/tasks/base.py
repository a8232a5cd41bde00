"""Interface of a task: a stateless ``Task`` opens models and data, checked against each other, as an ``OpenTask``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from abkd.config import DistillConfig
from abkd.data import Batch
from abkd.data.prepared import ExampleDataset
from abkd.metrics import Metric
from abkd.models.folders import missing_folder
from abkd.models.rows import ModelRows
from abkd.ops import Rows, TeacherRows
from abkd.run_inputs import DataSettings, ModelSettings
from abkd.settings import Settings
from abkd.teachers import TeacherReader

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

Collate = Callable[[Sequence[Any]], dict[str, Batch]]


@dataclass(frozen=True)
class Given:
    """The models and data of a run, by name or as objects, before anything is loaded.

    ``teacher``: a model, a list of models, or None. ``pretrain``: plain text for ``lm_coef``, as token lists or as rows
    with a column ``text``.
    """

    student: Any
    teacher: Any = None
    train: Any = None
    held_out: Any = None
    pretrain: object = None
    tokenizer: PreTrainedTokenizerBase | None = None
    peft_config: Any = None


@dataclass(frozen=True)
class Models:
    """Student and teacher as rows over the same classes, and the tokenizer that they share, if any.

    ``teacher`` is None if only labels are used.
    """

    student: ModelRows
    teacher: TeacherReader | None
    tokenizer: Any
    classes: int
    teacher_names: Sequence[str] = ()
    teacher_revision: str | None = None
    teacher_tokenizers: Mapping[str, PreTrainedTokenizerBase] = field(default_factory=dict)

    @property
    def padding(self) -> int:
        """The token id used for padding, which is masked and never trained."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in known if token is not None), 0))


class CacheJob(NamedTuple):
    """Arguments of :func:`abkd.teachers.caches.build_cache` for the teacher of a run."""

    examples: Iterable[object]
    load: Callable[[], ModelRows]
    identity: Mapping[str, object]
    about: Mapping[str, object]
    batch_size: int = 8
    tokens: int | None = None
    workers: int = 0


@dataclass
class OpenTask(ABC):
    """The models and data of one run; subclasses define what is specific to a task.

    Attributes:
        train, held_out: checked examples, or None.
    """

    args: DistillConfig
    models: Models
    train: ExampleDataset | None = None
    held_out: ExampleDataset | None = None

    @abstractmethod
    def prepare(self, dataset: Any) -> ExampleDataset:
        """The checked examples of an evaluation set.

        Raises:
            DataError, ConfigError: rows that cannot be used.
        """

    @property
    @abstractmethod
    def collate(self) -> Collate:
        """The function that collates examples into a batch."""

    @property
    @abstractmethod
    def max_rows(self) -> int:
        """Maximum number of rows in a training batch."""

    def teacher_queries(self) -> Iterable[object]:
        """The examples that a run sends to its teacher during training."""
        train: Any = self.train
        return train

    def row_metrics(self, student: Rows, teacher: TeacherRows | None, batch: Batch) -> dict[str, Tensor]:
        """``[N]`` each: evaluation metrics of the rows, in addition to the divergences."""
        return {}

    @abstractmethod
    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Metrics from sums over ``totals["rows"]`` held-out rows, in addition to the divergences."""

    @abstractmethod
    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        """Log how good the teacher is according to the first evaluation."""

    @abstractmethod
    def before_training(self, *, sharded: bool, writes: bool, evaluates_first: bool) -> None:
        """Log advice and warnings before a long run.

        Args:
            sharded: the student's parameters are sharded, so that no forward pass is possible here.
            writes: sequences are generated during training.
            evaluates_first: there is an evaluation before the first step.
        """

    def describe(self) -> dict[str, object]:
        """Task-specific entries of a run's record; called only if there are training rows."""
        return {}

    @abstractmethod
    def save_extras(self, directory: Path) -> None:
        """Add the remaining files needed to load a saved student."""

    def with_student(self, student: ModelRows) -> OpenTask:
        """A copy with another student, such as its final form."""
        return replace(self, models=replace(self.models, student=student))


class Task(ABC):
    """A kind of distillation. Stateless, one file each; adding one takes only its file and an export.

    Attributes:
        name: Hugging Face's name of the task.
        row_noun: the name of the rows in a formula, such as "response tokens".
        unit: the name of one row in messages, such as "token".
        fields: the task-specific settings and recipe keys that apply to this task.
        metrics: its held-out metrics, in addition to those of every task: entries of the table, or the task's own.
        data_hint: the error message if a recipe names no data.
        merges_adapters: whether a student is always saved with its adapters merged.
        peft_task_type: the task type of PEFT.
        finds_held_out: whether :meth:`read` may find a held-out set next to the training data.
        cacheable: whether ``abkd cache`` can store its teachers.
        embeds_tokens: whether its models embed tokens (NEFTune adds noise to these embeddings).
    """

    name: ClassVar[str]
    row_noun: ClassVar[str]
    unit: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    metrics: ClassVar[tuple[Metric, ...]]
    data_hint: ClassVar[str]
    merges_adapters: ClassVar[bool] = False
    peft_task_type: ClassVar[str | None] = None
    finds_held_out: ClassVar[bool] = False
    cacheable: ClassVar[bool] = True
    embeds_tokens: ClassVar[bool] = False

    def model_problem(self, name: str, field: str, allow_code: Sequence[str]) -> str | None:
        """Why the model of this name cannot be loaded, judging by its name and folder; None if no problem is found.

        Args:
            field: the recipe key of the model.
            allow_code: the modules that may be imported for it.
        """
        return f"{field}: {fault}" if (fault := missing_folder(name)) else None

    def data_problems(self, data: DataSettings) -> list[str]:
        """One sentence for each reason why the data settings do not suit the task."""
        return []

    @abstractmethod
    def read(self, data: DataSettings, settings: Settings, *, seed: int) -> tuple[Any, Any]:
        """The training rows and the held-out rows (or None) of a recipe.

        Args:
            settings: those of the recipe.
            seed: for the choice of the held-out rows, if they are split off from the training rows.

        Raises:
            DataError: a file that cannot be used.
        """

    @abstractmethod
    def sample(self, models: ModelSettings, data: DataSettings, settings: Settings) -> Iterable[str | Text]:
        """Paragraphs that show the first training example of a recipe as the student reads it.

        Raises:
            ConfigError: what reads it (a tokenizer) cannot be loaded.
            DataError: the example cannot be used.
        """

    @abstractmethod
    def open(self, given: Given, args: DistillConfig) -> OpenTask:
        """Load what is given by name, and check that student, teacher and data fit each other.

        Raises:
            ConfigError, DataError, VocabularyError: they do not fit.
        """

    def cache_job(self, given: Given, args: DistillConfig, teacher: str) -> CacheJob:
        """The cache that ``abkd cache`` builds of the teacher of this name for a run, without loading the student.

        Only for a task that is ``cacheable``.
        """
        raise NotImplementedError
