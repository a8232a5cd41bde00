"""The engine: a small subclass of ``transformers.Trainer``."""

from abkd.trainer._trainer import DistillTrainer

__all__ = ["DistillTrainer"]
