"""Evaluation without a trainer: held-out metrics of a student, with or without a teacher, and of answers."""

from abkd.evaluation._answers import answer_metrics, rouge_l
from abkd.evaluation._context import EvaluationContext
from abkd.evaluation._held_out import evaluate, held_out_metrics

__all__ = ["EvaluationContext", "answer_metrics", "evaluate", "held_out_metrics", "rouge_l"]
