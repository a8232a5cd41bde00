"""The engine: a small subclass of ``transformers.Trainer``."""

from abkd.trainer._modality import RUN_FILE
from abkd.trainer._trainer import DistillTrainer

__all__ = ["RUN_FILE", "DistillTrainer"]
