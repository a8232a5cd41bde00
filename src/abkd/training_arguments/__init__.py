"""Settings inherited from transformers: which ones work here, which would be ignored, and their derived defaults."""

from abkd.training_arguments._epochs import epochs, steps_per_epoch
from abkd.training_arguments._intervals import intervals, settle_metric, word
from abkd.training_arguments._kinds import settle_kinds
from abkd.training_arguments._packages import PEFT, TRACKERS, needed_by_models, needed_by_settings
from abkd.training_arguments._precision import current_precision, precision_kept
from abkd.training_arguments._rules import RANGES, default, problems, read_optim_args
from abkd.training_arguments._table import BELONGS, HARMLESS, OPTIM_ARGS, REFUSED, WORKS
from abkd.training_arguments._trial import for_this_machine, step_problems

__all__ = [
    "BELONGS",
    "HARMLESS",
    "OPTIM_ARGS",
    "PEFT",
    "RANGES",
    "REFUSED",
    "TRACKERS",
    "WORKS",
    "current_precision",
    "default",
    "epochs",
    "for_this_machine",
    "intervals",
    "needed_by_models",
    "needed_by_settings",
    "precision_kept",
    "problems",
    "read_optim_args",
    "settle_kinds",
    "settle_metric",
    "step_problems",
    "steps_per_epoch",
    "word",
]
