"""``DistillConfig``: the training arguments of transformers together with abkd's own settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from abkd import notation, training_arguments
from abkd.errors import ConfigError
from abkd.setting_rules import raise_first
from abkd.settings import COMPONENTS, Settings, field_types
from abkd.storage import in_full


@dataclass
class DistillConfig(Settings, TrainingArguments):  # type: ignore[misc]  # some fields have another default
    """All settings of a run except its models and data. Components may be given in their notation, as strings.

    Defaults that differ from those of transformers, and why:

    * ``learning_rate`` 1e-4 with a cosine schedule and 3 % warm-up: the middle of the grid {5e-4, 1e-4, 5e-5} of the
      paper (arXiv 2505.04560, App. I.1) for students of 0.1-0.8 B parameters; with LoRA use 2e-4 or more.
    * ``num_train_epochs`` 3: soft targets overfit late; the paper uses 20 on 11 000 rows.
    * ``report_to`` "none": nothing is sent to trackers by default; ``metrics.jsonl`` is always written.
    * ``logging_nan_inf_filter`` False and ``remove_unused_columns`` False: nothing is hidden, nothing is dropped.
    * ``disable_tqdm`` False: by default transformers derives it from its log level, which our command lowers.
    * ``save_strategy`` "epoch", or "steps" if ``save_steps`` is given; ``eval_strategy`` follows ``eval_steps``.
    * ``save_total_limit`` 2: the two newest checkpoints are kept, and the best one in addition; 0 keeps all.
    * ``restore_callback_states_from_checkpoint`` True: early stopping works the same in a resumed run.
    * ``dataloader_pin_memory`` if there is a GPU. Without one ``bf16`` sets ``use_cpu``, and ``fp16`` is ignored.

    An inherited field that would have no effect raises; :mod:`abkd.training_arguments` gives the reason for each.

    Raises:
        ConfigError: an invalid argument.
    """

    def __post_init__(self) -> None:
        self.parse()
        training_arguments.settle_kinds(self, field_types(DistillConfig), own=field_types().keys())
        raise_first(self.problems())
        raise_first(training_arguments.problems(vars(self)))
        self.expand_short_forms()
        raise_first(training_arguments.needed_by_settings(vars(self)))
        self._settle_inherited()
        output_dir = in_full(str(self.output_dir)) if self.output_dir else self.output_dir
        try:
            with training_arguments.precision_kept():
                TrainingArguments.__post_init__(self)
                self.mixed_precision = getattr(self, "mixed_precision", training_arguments.current_precision())
        except (ValueError, TypeError, KeyError, ImportError, NotImplementedError, OSError) as error:
            raise ConfigError(f"invalid training arguments: {error}") from error
        self.output_dir = output_dir  # as given
        raise_first([*training_arguments.problems(vars(self)), *training_arguments.step_problems(self)])

    def _settle_inherited(self) -> None:
        """Set fields of transformers that follow from other fields, and from this machine."""
        settled = training_arguments.intervals(vars(self))
        settled |= training_arguments.settle_metric(vars(self), one_loss=not self.objective().changes)
        settled |= training_arguments.for_this_machine(vars(self))
        for name, value in settled.items():
            setattr(self, name, value)
        if hasattr(self, "warmup_ratio"):  # before transformers 5: for a fraction; steps are an integer
            if 0 < self.warmup_steps < 1:
                self.warmup_ratio, self.warmup_steps = self.warmup_steps, 0
            self.warmup_steps = math.floor(self.warmup_steps)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with components in their notation, for JSON and trackers."""
        values = super().to_dict()
        for name in COMPONENTS:
            if not isinstance(values[name], int | float | None):
                values[name] = notation.render(values[name])
        return values
