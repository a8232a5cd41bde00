"""``Settings``: what abkd adds to transformers' training arguments, and the way into the rule book about it.

Importing this loads no torch: a default that is a component stays notation until it is used.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from abkd import notation
from abkd.errors import ConfigError

if TYPE_CHECKING:
    from abkd.data.images.augmentation import Augmentation
    from abkd.divergences import Divergence
    from abkd.objective import Objective
    from abkd.row_weights import RowWeights
    from abkd.schedules import Schedule
    from abkd.sources import Source
    from abkd.teachers import Teacher
    from abkd.term import Term


_HELD_OUT = 0.05


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _setting(default: Any, help: str) -> Any:  # noqa: A002  # as transformers calls it
    return field(default=default, metadata={"help": help})


def _component(default: Any, help: str) -> Any:  # noqa: A002
    """A field whose values are components; a default that is one is written in the notation."""
    return field(default=default, metadata={"help": help, "component": True})


def _mapping(help: str) -> Any:  # noqa: A002
    return field(default=None, metadata={"help": help, "mapping": True})


@dataclass(kw_only=True)
class Settings:
    """The settings of a run that are abkd's own, without models and data.

    A component may be given as its notation and a mapping as JSON, both strings; the field then holds the value.
    Constructing checks nothing but the notation: :meth:`problems` lists what does not fit.

    Raises:
        ConfigError: a string that is not the notation of a component, or not a JSON mapping.
    """

    # Fields of transformers.TrainingArguments that have another default here; DistillConfig says why.
    learning_rate: float = 1e-4
    num_train_epochs: float = 3.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    report_to: str | list[str] | None = "none"
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    logging_steps: float = 10
    disable_tqdm: bool | None = False
    save_strategy: str | None = None
    save_steps: float | None = None
    save_total_limit: int | None = 2
    eval_strategy: str | None = None
    dataloader_pin_memory: bool = field(default_factory=_has_gpu)
    restore_callback_states_from_checkpoint: bool = True

    task: str = _setting("text-generation", "what is distilled, in Hugging Face's names")

    divergence: Divergence | Schedule = _component(
        "AlphaBeta(alpha=0.2, beta=0.7)", "a divergence or a schedule of divergences"
    )
    kd_temperature: float = _setting(1.0, "softmax temperature inside the divergence")
    kd_ratio: float | None = _setting(None, "short form: ce_weight = 1 - kd_ratio, kd_weight = kd_ratio")
    ce_weight: float | Schedule = _component(0.0, "weight of the hard-label cross-entropy")
    kd_weight: float | Schedule = _component(1.0, "weight of the divergence")
    scale_by_temperature_squared: bool = _setting(False, "multiply the divergence by T²")
    row_weight: RowWeights | None = _component(None, "which rows count, as TeacherConfidence()")
    terms: list[Term] | Schedule | None = _component(
        None, "several terms, as [Term(ForwardKL(), origin='teacher'), ...], instead of divergence"
    )
    lm_coef: float = _setting(0.0, "weight of the language-model loss on plain text")
    memory_budget_mb: float = _setting(256.0, "memory for the logits of one chunk of rows")

    teacher: Teacher = _component("Live()", "how its predictions are obtained: Live(), TopKCache(k=64), EMA()")
    teacher_model_init_kwargs: dict[str, Any] | None = _mapping(
        "passed to the teacher's from_pretrained, such as {dtype: bfloat16}"
    )
    model_init_kwargs: dict[str, Any] | None = _mapping(
        "passed to the student's loading, such as {pretrained: true} for timm"
    )
    allow_code: list[str] | None = _setting(None, "modules that may run because a saved model's directory names them")
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = _setting(
        None, "dtype of the saved student; by default that of the model it started from"
    )
    merge_adapter: bool = _setting(False, "save adapters merged into the student's weights")
    overwrite_output_dir: bool = _setting(False, "empty a used output_dir first")

    source: Source | Schedule = _component(
        "Dataset()", "who writes the sequences, as Mix(0.5, StudentSamples(), Dataset())"
    )
    lmbda: float | None = _setting(None, "short form: the share of batches that the student writes")
    seq_kd: bool = _setting(False, "short form: the other batches are written by the teacher")
    max_completion_length: int = _setting(256, "maximum number of tokens that a model writes")
    num_generations: int = _setting(1, "completions that the student writes per prompt")
    generation_kwargs: dict[str, Any] | None = _mapping("passed to generate, such as {repetition_penalty: 1.1}")
    teacher_model_server_url: str | None = _setting(None, "an OpenAI-compatible server that writes the teacher's text")
    eval_samples: int = _setting(0, "held-out prompts that both models answer at each evaluation: r_llh, r_cvg")

    max_length: int = _setting(1024, "tokens of a row; longer completions are truncated")
    packing: bool = _setting(False, "put several rows into one sequence (exact)")
    group_by_length: bool = _setting(False, "put rows of similar length into one batch")
    on_bad_row: Literal["error", "drop"] = _setting("error", "what to do with an unusable row")
    apply_chat_template: bool | None = _setting(
        None, "plain prompt and completion as user and assistant turns; null: where both models have a template"
    )

    augmentation: list[Augmentation] | None = _component(
        None, "applied to training images, as [RandomCrop(4), HorizontalFlip()]"
    )
    image_size: int | None = _setting(None, "side of the images after augmentation; by default the models' own")
    lr_milestones: list[float] | None = _setting(None, "epochs after which the learning rate is multiplied by lr_decay")
    lr_decay: float = _setting(0.1, "factor of the learning rate at lr_milestones")
    decay_all_parameters: bool = _setting(
        False, "weight_decay on biases and normalisation too, as in the CIFAR protocol"
    )
    prompt_template: str = _setting("a photo of a {}.", "CLIP: the sentence in which the teacher reads a class name")
    visual_prompt_length: int = _setting(4, "CLIP: learnable tokens per layer of the student")
    visual_prompt_depth: int = _setting(9, "CLIP: number of its layers that have them")
    unlabelled_classes: Literal["all", "base"] = _setting(
        "all", "CLIP: classes whose images are trained on; with all, the new classes are seen too"
    )

    def __post_init__(self) -> None:
        self.parse()

    def parse(self) -> None:
        """Replace strings by what they write: components by their notation, mappings by JSON; one by a list of one.

        Raises:
            ConfigError: a string that writes neither.
        """
        from abkd.models.loading import with_dtype

        for each in fields(Settings):
            value = getattr(self, each.name)
            if isinstance(value, str) and each.metadata.get("component"):
                setattr(self, each.name, notation.parse(value))
            elif isinstance(value, str) and each.metadata.get("mapping"):
                setattr(self, each.name, _read_mapping(each.name, value))
        for name in ("teacher_model_init_kwargs", "model_init_kwargs"):
            setattr(self, name, with_dtype(getattr(self, name), name))
        if isinstance(self.allow_code, str):
            self.allow_code = [self.allow_code]
        if self.augmentation is not None and not isinstance(self.augmentation, list | tuple):
            self.augmentation = [self.augmentation]

    def problems(self, given: Collection[str] | None = None) -> list[str]:
        """One sentence for each value out of range and each invalid combination; empty where all is well.

        Args:
            given: names of the settings that were set, for those that exclude each other; by default those that differ
                from their default.
        """
        from abkd.setting_rules import problems

        return problems(self, self.changed() if given is None else set(given))

    def changed(self) -> set[str]:
        """The names of the fields that differ from their default."""
        return {each.name for each in fields(Settings) if getattr(self, each.name) != default_of(each)}

    def expand_short_forms(self) -> None:
        """Write ``kd_ratio`` as the weights that it stands for, ``lmbda`` and ``seq_kd`` as their source."""
        from abkd.sequence_rules import short_form

        if self.kd_ratio is not None:
            self.ce_weight, self.kd_weight = 1.0 - self.kd_ratio, float(self.kd_ratio)
        if self.lmbda is not None or self.seq_kd:
            self.source = short_form(self.lmbda, self.seq_kd)

    def objective(self) -> Objective:
        """The objective that these fields describe.

        Raises:
            ConfigError: they describe none.
        """
        from abkd.objective import Objective

        weights = (self.ce_weight, self.kd_weight)
        ce_weight, kd_weight = weights if self.kd_ratio is None else (1.0 - self.kd_ratio, float(self.kd_ratio))
        return Objective(
            divergence=self.divergence if self.terms is None else None,
            temperature=self.kd_temperature,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            scale_by_temperature_squared=self.scale_by_temperature_squared,
            row_weight=self.row_weight,
            lm_coef=self.lm_coef,
            terms=self.terms,
        )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The models of a run, by name."""

    model_name_or_path: str
    """The student: a directory or a hub name."""
    teacher_model_name_or_path: str | list[str] | None = None
    """The teacher, or the members of an ensemble; none where the teacher is made of the student."""
    model_revision: str | None = None
    teacher_model_revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data of a run, by name. Paths are relative to the working directory; None means "not set"."""

    train_file: str | list[str] | None = None
    """JSONL, JSON, CSV (also compressed) or parquet with prompt/completion, messages or text: a file, several, or a
    pattern such as data/*.jsonl; for images one .npz with arrays."""
    eval_file: str | list[str] | None = None
    train_dir: str | None = None
    """Images in one folder a class, or in one folder without classes."""
    eval_dir: str | None = None
    split_file: str | None = None
    """CLIP: the split of a data set into train, val and test, as CoOp writes it (JSON); images lie in train_dir."""
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str | None = None
    streaming: bool = False
    """Read training rows when their turn comes and keep no copy of them: for data that does not fit the disk."""
    eval_fraction: float | None = None
    """The share of the training rows that is held out when nothing to evaluate on is given; 0.05 where nobody says and,
    of images, no split to evaluate on lies beside them."""
    pretrain_file: str | list[str] | None = None
    """Plain text for the language-modelling term (lm_coef)."""

    @property
    def share_held_out(self) -> float:
        """``eval_fraction``, or its default."""
        return _HELD_OUT if self.eval_fraction is None else self.eval_fraction


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters in place of all of the student's weights."""

    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: str | list[str] | None = None


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The settings among the values of a recipe; the others are left alone."""
    names = {each.name for each in fields(Settings)}
    return Settings(**{name: value for name, value in values.items() if name in names})


COMPONENTS = tuple(each.name for each in fields(Settings) if each.metadata.get("component"))


def default_of(each: dataclasses.Field[Any]) -> Any:
    """The default of a field of :class:`Settings`, a component as its value."""
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    written = each.metadata.get("component") and isinstance(each.default, str)
    return _parsed(each.default) if written else each.default


@cache
def _parsed(text: str) -> object:
    return notation.parse(text)


@cache
def field_types(kind: type = Settings) -> Mapping[str, Any]:
    """The type of each field of ``kind``, :class:`Settings` or a subclass, by name. Loads torch."""
    from abkd.data.images.augmentation import Augmentation
    from abkd.divergences import Divergence
    from abkd.row_weights import RowWeights
    from abkd.schedules import Schedule
    from abkd.sources import Source
    from abkd.teachers import Teacher
    from abkd.term import Term

    kinds = (Augmentation, Divergence, RowWeights, Schedule, Source, Teacher, Term)
    return typing.get_type_hints(kind, localns={each.__name__: each for each in kinds})


def _read_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f'{name} must be a mapping such as {{"dtype": "bfloat16"}}, got {text!r}')
    return value
