"""The engine: a small subclass of ``transformers.Trainer``."""

from abkd.trainer._checkpoints import checkpoints, newest_whole
from abkd.trainer._hub import check_hub
from abkd.trainer._record import RECIPE_FILE, RESULT_FILE, describe
from abkd.trainer._run_file import RUN_FILE, read_record
from abkd.trainer._trainer import DistillTrainer

__all__ = [
    "RECIPE_FILE",
    "RESULT_FILE",
    "RUN_FILE",
    "DistillTrainer",
    "check_hub",
    "checkpoints",
    "describe",
    "newest_whole",
    "read_record",
]
