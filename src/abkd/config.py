"""``DistillConfig``: the training arguments of transformers plus the objective; the only copy of its fields."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments

from abkd import notation, training_arguments
from abkd.data.images.augmentation import Augmentation
from abkd.divergences import AlphaBeta, Divergence
from abkd.errors import ConfigError
from abkd.generation import Sampling, settle
from abkd.models.loading import with_dtype
from abkd.objective import Objective
from abkd.ops import plan_chunks
from abkd.row_weights import RowWeights
from abkd.schedules import Schedule, is_number
from abkd.sequence_rules import check_sequences, check_written_for, short_form
from abkd.setting_rules import of_other_tasks, out_of_range
from abkd.sources import Dataset, Source
from abkd.storage import in_full
from abkd.teachers import Live, Teacher
from abkd.training_arguments._trial import for_this_machine, step_problems

Task = Literal["text-generation", "image-classification", "zero-shot-image-classification"]
TASKS: tuple[str, ...] = get_args(Task)
TEXT, IMAGES, CLIP = TASKS

_COMPONENTS = ("divergence", "row_weight", "ce_weight", "kd_weight", "terms", "source", "teacher", "augmentation")
_MAPPINGS = ("teacher_model_init_kwargs", "model_init_kwargs", "generation_kwargs")


@dataclass
class DistillConfig(TrainingArguments):
    """Everything about a run but its models and data. A component may be given as its notation, a string.

    Defaults that differ from those of transformers, and why:

    * ``learning_rate`` 1e-4 with a cosine schedule and 3 % warm-up: the middle of the grid {5e-4, 1e-4, 5e-5} of the
      paper (arXiv 2505.04560, App. I.1) for students of 0.1-0.8 B parameters; with LoRA take 2e-4 or more.
    * ``num_train_epochs`` 3: soft targets overfit late; the paper takes 20 on 11 000 rows.
    * ``report_to`` "none": nothing leaves the machine unless asked; ``metrics.jsonl`` is always written.
    * ``logging_nan_inf_filter`` False and ``remove_unused_columns`` False: nothing is hidden, nothing is dropped.
    * ``disable_tqdm`` False: else transformers asks its own logger, which our command silences, for our progress bar.
    * ``save_strategy`` "epoch", or "steps" where ``save_steps`` is given; ``eval_strategy`` follows ``eval_steps``.
    * ``save_total_limit`` 2: the two newest checkpoints are kept, and the best one besides; 0 keeps all.
    * ``restore_callback_states_from_checkpoint`` True: a resumed run stops early where it would have.
    * ``dataloader_pin_memory`` where there is a GPU. Without one ``bf16`` sets ``use_cpu``, and ``fp16`` is left out.

    An inherited field that would have no effect is refused; :mod:`abkd.training_arguments` says so of each.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    learning_rate: float = 1e-4
    num_train_epochs: float = 3.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    report_to: str | list[str] | None = "none"
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    logging_steps: float = 10
    disable_tqdm: bool | None = False
    save_strategy: str | None = None  # type: ignore[assignment]
    save_steps: float | None = None  # type: ignore[assignment]
    save_total_limit: int | None = 2
    eval_strategy: str | None = None  # type: ignore[assignment]
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    restore_callback_states_from_checkpoint: bool = True

    task: Task = field(default="text-generation", metadata={"help": f"what is distilled: {', '.join(TASKS)}"})
    divergence: Divergence | Schedule | str = field(
        default_factory=AlphaBeta, metadata={"help": "a divergence or a schedule of divergences"}
    )
    kd_temperature: float = field(default=1.0, metadata={"help": "softmax temperature inside the divergence"})
    kd_ratio: float | None = field(
        default=None, metadata={"help": "short form: ce_weight = 1 - kd_ratio, kd_weight = kd_ratio"}
    )
    ce_weight: float | Schedule | str = field(default=0.0, metadata={"help": "weight of the hard-label cross-entropy"})
    kd_weight: float | Schedule | str = field(default=1.0, metadata={"help": "weight of the divergence"})
    scale_by_temperature_squared: bool = field(default=False, metadata={"help": "multiply the divergence by T²"})
    row_weight: RowWeights | str | None = field(
        default=None, metadata={"help": "which rows count, as TeacherConfidence()"}
    )
    terms: list[Any] | Schedule | str | None = field(
        default=None,
        metadata={"help": "several terms, as [Term(ForwardKL(), origin='teacher'), ...], instead of divergence"},
    )
    source: Source | Schedule | str = field(
        default_factory=Dataset, metadata={"help": "who writes the sequences, as Mix(0.5, StudentSamples(), Dataset())"}
    )
    teacher: Teacher | str = field(
        default_factory=Live,
        metadata={"help": "how its predictions are obtained: Live(), TopKCache(k=64), EMA()"},
    )
    lmbda: float | None = field(
        default=None, metadata={"help": "short form: the share of batches that the student writes"}
    )
    seq_kd: bool = field(default=False, metadata={"help": "short form: the other batches are written by the teacher"})
    max_completion_length: int = field(default=256, metadata={"help": "tokens that a model writes at most"})
    num_generations: int = field(default=1, metadata={"help": "completions that the student writes to a prompt"})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "passed to generate, such as {repetition_penalty: 1.1}"}
    )
    teacher_model_server_url: str | None = field(
        default=None, metadata={"help": "an OpenAI-compatible server that writes the teacher's text"}
    )
    eval_samples: int = field(
        default=0, metadata={"help": "held-out prompts that both models answer at each evaluation: r_llh, r_cvg"}
    )
    lm_coef: float = field(default=0.0, metadata={"help": "weight of the language-model loss on plain text"})
    max_length: int = field(default=1024, metadata={"help": "tokens of a row; longer completions are cut"})
    packing: bool = field(default=False, metadata={"help": "put several rows into one sequence (exact)"})
    group_by_length: bool = field(default=False, metadata={"help": "put rows of similar length into one batch"})
    on_bad_row: Literal["error", "drop"] = field(default="error", metadata={"help": "what to do with an unusable row"})
    apply_chat_template: bool | None = field(
        default=None,
        metadata={
            "help": "plain prompt and completion as user and assistant turns; null: where both models have a template"
        },
    )
    memory_budget_mb: float = field(default=256.0, metadata={"help": "memory for the logits of one chunk of rows"})
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "passed to the teacher's from_pretrained, such as {dtype: bfloat16}"}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "passed to the student's loading, such as {pretrained: true} for timm"}
    )
    allow_code: list[str] | str | None = field(
        default=None, metadata={"help": "modules that may run because a saved model's directory names them"}
    )
    augmentation: list[Any] | Augmentation | str | None = field(
        default=None, metadata={"help": "what is done to images in training, as [RandomCrop(4), HorizontalFlip()]"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "side of the images before augmentation ends; else what the models want"}
    )
    lr_milestones: list[float] | None = field(
        default=None, metadata={"help": "epochs after which the learning rate is multiplied by lr_decay"}
    )
    lr_decay: float = field(default=0.1, metadata={"help": "that factor"})
    decay_all_parameters: bool = field(
        default=False, metadata={"help": "weight_decay on biases and normalisation too, as in the CIFAR protocol"}
    )
    prompt_template: str = field(
        default="a photo of a {}.", metadata={"help": "CLIP: the sentence in which the teacher reads a class name"}
    )
    visual_prompt_length: int = field(default=4, metadata={"help": "CLIP: learnable tokens in a layer of the student"})
    visual_prompt_depth: int = field(default=9, metadata={"help": "CLIP: how many of its layers have them"})
    unlabelled_classes: Literal["all", "base"] = field(
        default="all", metadata={"help": "CLIP: whose images are trained on; with all the new classes are seen too"}
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "number type of the saved student; else that of the directory it began from"}
    )
    merge_adapter: bool = field(default=False, metadata={"help": "save adapters merged into the student's weights"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "empty a used output_dir first"})

    def __post_init__(self) -> None:
        self._read_texts()
        training_arguments.settle_kinds(self, DistillConfig)
        _raise_first([*out_of_range(vars(self)), *training_arguments.problems(vars(self))])
        if self.kd_ratio is not None:
            self._take_kd_ratio(self.kd_ratio)
        self._take_short_forms()
        self._check_task()
        check_sequences(self.source, self.teacher, packing=self.packing, eval_samples=self.eval_samples)
        check_written_for(self.objective(), self.source)
        settle(Sampling(), self.generation_kwargs)  # type: ignore[arg-type]  # a text was parsed
        self._take_milestones()
        plan_chunks(1, 1, torch.device("cpu"), memory_budget_mb=self.memory_budget_mb)
        _raise_first(training_arguments.needed_by_settings(vars(self)))
        self._settle_inherited()
        output_dir = in_full(str(self.output_dir)) if self.output_dir else self.output_dir
        try:
            super().__post_init__()
        except (ValueError, TypeError, KeyError, ImportError, NotImplementedError, OSError) as error:
            raise ConfigError(f"the training arguments do not fit together: {error}") from error
        self.output_dir = output_dir  # as it was written
        _raise_first([*training_arguments.problems(vars(self)), *step_problems(self)])

    def _settle_inherited(self) -> None:
        """Settle fields of transformers that follow from other fields, and from this machine."""
        settled = training_arguments.intervals(vars(self))
        settled |= training_arguments.settle_metric(vars(self), one_loss=not self.objective().changes)
        settled |= for_this_machine(vars(self))
        for name, value in settled.items():
            setattr(self, name, value)
        if 0 < self.warmup_steps < 1 and hasattr(self, "warmup_ratio"):  # a share goes there before transformers 5
            self.warmup_ratio, self.warmup_steps = self.warmup_steps, 0

    def _read_texts(self) -> None:
        for names, read in ((_COMPONENTS, lambda _, text: notation.parse(text)), (_MAPPINGS, _read_mapping)):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, str):
                    setattr(self, name, read(name, value))
        for name in ("teacher_model_init_kwargs", "model_init_kwargs"):
            setattr(self, name, with_dtype(getattr(self, name), name))
        if isinstance(self.augmentation, Augmentation):
            self.augmentation = [self.augmentation]
        if isinstance(self.allow_code, str):
            self.allow_code = [self.allow_code]

    def objective(self) -> Objective:
        """The objective that these fields describe."""
        return Objective(
            divergence=self.divergence if self.terms is None else None,  # type: ignore[arg-type]  # strings were parsed
            temperature=self.kd_temperature,
            ce_weight=self.ce_weight,  # type: ignore[arg-type]
            kd_weight=self.kd_weight,  # type: ignore[arg-type]
            scale_by_temperature_squared=self.scale_by_temperature_squared,
            row_weight=self.row_weight,  # type: ignore[arg-type]
            lm_coef=self.lm_coef,
            terms=self.terms,  # type: ignore[arg-type]
        )

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with components in their notation, so that JSON and trackers can take it."""
        values = super().to_dict()
        for name in _COMPONENTS:
            if not isinstance(values[name], int | float | None):
                values[name] = notation.render(values[name])
        return values

    def _check_task(self) -> None:
        """Raise ConfigError where a setting belongs to another task than this one."""
        changed = {each.name for each in fields(self) if getattr(self, each.name) != training_arguments.default(each)}
        _raise_first(of_other_tasks({name: value for name, value in vars(self).items() if name in changed}))
        parts = [] if self.augmentation is None else self.augmentation
        if not isinstance(parts, list) or not all(isinstance(part, Augmentation) for part in parts):
            raise ConfigError(f"augmentation is a list such as [RandomCrop(4), HorizontalFlip()], but it is {parts!r}")

    def _take_short_forms(self) -> None:
        """``lmbda`` and ``seq_kd`` as a source."""
        if self.lmbda is None and not self.seq_kd:
            return
        meant = short_form(self.lmbda, self.seq_kd)
        if self.source not in (Dataset(), meant):
            raise ConfigError(f"lmbda and seq_kd are the short form of source: {meant!r}; give one or the other")
        self.source = meant

    def _take_milestones(self) -> None:
        after: Any = self.lr_milestones or []
        if not all(is_number(epoch) and epoch > 0 for epoch in after) or list(after) != sorted(set(after)):
            raise ConfigError(f"lr_milestones are epochs in rising order, such as [150, 180, 210], but are {after!r}")

    def _take_kd_ratio(self, ratio: float) -> None:
        if (self.ce_weight, self.kd_weight) not in ((0.0, 1.0), (1 - ratio, ratio)):
            raise ConfigError("kd_ratio is the short form of ce_weight and kd_weight: give one or the other")
        self.ce_weight, self.kd_weight = 1.0 - ratio, float(ratio)


def _raise_first(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems[0])


def _read_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f'{name} must be a mapping such as {{"dtype": "bfloat16"}}, but it is {text!r}')
    return value
