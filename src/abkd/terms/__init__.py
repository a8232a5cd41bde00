"""Loss terms: what is compared between student and teacher, how much each row counts, and controllers."""

from abkd.terms._base import (
    LossTerm,
    ModelInfo,
    Needs,
    OpenTerm,
    TermInputs,
    TermLoss,
    TokenLogProbs,
    check_term,
    check_weight,
    times,
    whose,
)
from abkd.terms._row_functions import RowFunction, RowTemperature, Scores
from abkd.terms._row_weights import RowWeights, TeacherConfidence
from abkd.terms._rows import OpenRowTerm, Term, base_temperature, check_temperature, with_facts
from abkd.terms._sequence_mixture import teacher_share

__all__ = [
    "LossTerm",
    "ModelInfo",
    "Needs",
    "OpenRowTerm",
    "OpenTerm",
    "RowFunction",
    "RowTemperature",
    "RowWeights",
    "Scores",
    "TeacherConfidence",
    "Term",
    "TermInputs",
    "TermLoss",
    "TokenLogProbs",
    "base_temperature",
    "check_temperature",
    "check_term",
    "check_weight",
    "teacher_share",
    "times",
    "whose",
    "with_facts",
]
