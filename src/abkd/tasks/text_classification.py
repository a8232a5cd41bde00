"""Text classification: sequence classifiers of transformers, and rows that are a text, or a pair of texts, each.

Student and teacher may have different tokenizers and positions: each reads the same text in its own tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from abkd.config import DistillConfig
from abkd.data import Rows, check_same_tokenizer, load_rows
from abkd.data.labels import tidy_labels
from abkd.data.texts import TextCollator, TextDataset, TextSteps, label_column, prepare_texts, text_columns
from abkd.errors import VocabularyError
from abkd.models.adapters import check_adapters, with_adapters
from abkd.models.classes import Classes, check_same_classes, real_names, same_name
from abkd.models.folders import broken_model
from abkd.models.loading import load_tokenizer, teacher_options
from abkd.models.saving import check_trainable
from abkd.models.sequence import SequenceRows, load_sequence_classifier, name_classes, new_modules
from abkd.run_inputs import DataSettings, ModelSettings
from abkd.settings import Settings
from abkd.tasks._checks import check_full_distribution, check_labels, check_separate, given_teachers, open_reader
from abkd.tasks._classification import OF_CLASSES, OpenClassification
from abkd.tasks._row_data import read_rows
from abkd.tasks._start import check_padding
from abkd.tasks._text_models import own_tokenizer
from abkd.tasks.base import Given, Models, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")


class TextClassification(Task):
    """A row is a text, or a pair of texts."""

    name = "text-classification"
    row_noun = "examples"
    unit = "example"
    fields = frozenset(
        {"max_length", "group_by_length", "text_column_names", "label_column_name", "use_peft", "save_dtype"}
    )
    metrics = OF_CLASSES
    data_hint = "no data: set train_file (JSONL, CSV or parquet) or dataset_name (a hub name)"
    merges_adapters = True  # an adapter cannot store the class names
    peft_task_type = "SEQ_CLS"
    cacheable = False
    embeds_tokens = True

    def model_problem(self, name: str, field: str, allow_code: Sequence[str]) -> str | None:
        return f"{field}: {fault}" if (fault := broken_model(name)) else None

    def read(self, data: DataSettings, settings: Settings, *, seed: int) -> tuple[Any, Any]:
        return read_rows(data, seed=seed, columns=lambda rows: text_columns(rows, settings.text_column_names))

    def sample(self, models: ModelSettings, data: DataSettings, settings: Settings) -> Iterator[str]:
        train, _ = self.read(data, settings, seed=0)
        tokenizer = load_tokenizer(models.model_name_or_path, what="model_name_or_path", revision=models.model_revision)
        texts = text_columns(train, settings.text_column_names)
        label = label_column(train, settings.label_column_name)
        ids = TextSteps(tokenizer, settings.max_length, texts)(train[0]).examples[0]["input_ids"]
        known = "unlabelled" if label is None else f"{label} {train[0].get(label)!r}"
        yield from ("", tokenizer.decode(ids), f"{len(ids)} tokens of {' and '.join(texts)}, {known}")

    def open(self, given: Given, args: DistillConfig) -> OpenTexts:
        tokenizer = own_tokenizer(given.student, args) if given.tokenizer is None else given.tokenizer
        teachers = [_teacher(each, tokenizer, args) for each in given_teachers(given.teacher, args)]
        rows = None if given.train is None or isinstance(given.train, TextDataset) else load_rows(given.train)
        names = next((each.own_classes.names for each in teachers if each.own_classes.names), None)
        labels = None if rows is None else labels_of(rows, args, names)
        names = names or (None if labels is None else labels.names)
        known = Classes(teachers[0].head_rows, names) if teachers else None if labels is None else labels.known
        student = _student(given, tokenizer, args, known)
        for each in teachers:
            check_separate(student.model, each.model)
            check_same_classes(student.own_classes, each.own_classes, None)
            check_same_tokenizer(teachers[0].tokenizer, each.tokenizer)
        name_classes(student.model, names)
        student.check()
        reader = open_reader(student, teachers, args)
        if reader is not None:
            reader.classes = student.head_rows
            reader.check()
        check_full_distribution(reader, args)
        sources = [getattr(each.model, "name_or_path", "") for each in teachers]
        opened = OpenTexts(args, Models(student, reader, tokenizer, student.head_rows, sources), teachers=teachers)
        opened.train = None if given.train is None else opened.checked(given.train if rows is None else rows, "train")
        opened.held_out = None if given.held_out is None else opened.prepare(given.held_out)
        return opened


@dataclass
class OpenTexts(OpenClassification):
    """Two sequence classifiers, and texts that each reads in its own tokens.

    ``teachers``: the models of the teacher; empty if it is derived from the student.
    """

    rows = "examples"
    teachers: Sequence[SequenceRows] = ()

    def checked(self, dataset: Any, name: str) -> TextDataset:
        """The checked and tokenised examples of a dataset."""
        if isinstance(dataset, TextDataset):
            return dataset
        rows, args, student = load_rows(dataset), self.args, self.models.student
        assert isinstance(student, SequenceRows)
        labels = labels_of(rows, args, student.own_classes.names)
        check_labels(None if labels is None else labels.numbers, rows.name or name, student.head_rows, args)
        longest = min((each.positions or args.max_length for each in self.teachers), default=args.max_length)
        steps = TextSteps(
            student.tokenizer,
            min(args.max_length, student.positions or args.max_length),
            text_columns(rows, args.text_column_names),
            None if labels is None else labels.column,
            None if labels is None else labels.classes,
            self.teachers[0].tokenizer if self.teachers else None,
            min(args.max_length, longest),
        )
        return prepare_texts(rows, steps, name=name, on_bad_row=args.on_bad_row)

    def prepare(self, dataset: Any) -> TextDataset:
        return self.checked(dataset, "eval")

    @property
    def collate(self) -> TextCollator:
        student: Any = self.models.student
        return TextCollator(student.padding, (self.teachers[0] if self.teachers else student).padding)

    def before_training(self, *, sharded: bool, writes: bool, evaluates_first: bool) -> None:
        train = self.train
        if not isinstance(train, TextDataset):  # transformers raises
            return
        if train.truncated:
            logger.warning(
                "abkd: max_length, or a model's positions, truncate %d of %d examples", train.truncated, len(train)
            )
        check_padding(self)
        if not (sharded or evaluates_first):
            self.score_teacher()

    def describe(self) -> dict[str, object]:
        train, student = self.train, self.models.student
        assert isinstance(train, TextDataset)
        assert isinstance(student, SequenceRows)
        return {"class_names": student.own_classes.names, "labelled": train.labelled}

    def save_extras(self, directory: Path) -> None:
        """Nothing: transformers has saved the model with its class names, and the tokenizer."""


class Labels(NamedTuple):
    """The classes of rows. ``classes``: the class of each value of the column. ``numbers``: int64 [rows]."""

    column: str
    classes: dict[object, int]
    numbers: NDArray[np.int64]
    names: tuple[str, ...] | None

    @property
    def known(self) -> Classes:
        """The number of classes, and their names."""
        return Classes(len(self.names) if self.names else int(self.numbers.max()) + 1, self.names)


def labels_of(rows: Rows, args: Settings, names: Sequence[str] | None) -> Labels | None:
    """The classes of the rows, by their names in the order of ``names``, those of the models; None without labels.

    Raises:
        DataError: labels for some rows only, or of another kind than integers and names.
        VocabularyError: a class that the models do not have.
    """
    column = label_column(rows, args.label_column_name)
    if column is None:
        return None
    values = [row.get(column) for row in rows]
    where = rows.name or "the dataset"
    plain = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in values]
    numbers, own = tidy_labels(plain, rows.class_names.get(column), len(rows), where, unit="example")
    if numbers is None:
        return None
    if names is not None and real_names(own) is not None and own is not None:
        numbers, own = _renumbered(numbers, own, names, where), tuple(names)
    return Labels(column, dict(zip(values, numbers.tolist(), strict=True)), numbers, own)


def _renumbered(numbers: NDArray[np.int64], own: Sequence[str], names: Sequence[str], where: str) -> NDArray[np.int64]:
    places = [next((i for i, name in enumerate(names) if same_name(name, mine)), None) for mine in own]
    if None in places:
        raise VocabularyError(
            f"{where} has a class {own[places.index(None)]!r} that the models do not have ({', '.join(names)}): rename "
            "the classes of the data, or, if only the names differ, fix id2label in the models' config.json"
        )
    return np.array(places, dtype=np.int64)[numbers]


def _teacher(model: Any, tokenizer: PreTrainedTokenizerBase, args: DistillConfig) -> SequenceRows:
    """A teacher with its own tokenizer, or the student's if it has no name; loading it changes no random numbers."""
    what, options = "teacher_model_name_or_path", teacher_options(args.teacher_model_init_kwargs, args.device)
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
    if isinstance(model, str):
        with torch.random.fork_rng([]):
            model = load_sequence_classifier(model, what=what, **options)
    check_adapters(model, "the teacher", trained=False)
    own = load_tokenizer(name, what=what, revision=options.get("revision")) if name else tokenizer
    return SequenceRows(model, own)


def _student(
    given: Given, tokenizer: PreTrainedTokenizerBase, args: DistillConfig, classes: Classes | None
) -> SequenceRows:
    """The student: a checkpoint without a trained head gets one for ``classes``, those of the teacher or the data."""
    model = given.student
    if isinstance(model, str):
        options = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
        model = load_sequence_classifier(model, what="model_name_or_path", classes=classes, student=True, **options)
    if given.peft_config is not None:
        if not getattr(given.peft_config, "modules_to_save", None):  # PEFT itself would leave out a new pooler
            given.peft_config.modules_to_save = new_modules(model)
        model = with_adapters(model, given.peft_config)
    check_adapters(model, "the student", trained=True)
    rows = SequenceRows(model, tokenizer)
    check_trainable(model, rows.name)
    return rows
