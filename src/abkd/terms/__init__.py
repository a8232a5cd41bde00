"""Loss terms: what is compared between student and teacher, how much each row counts, and controllers.

``__all__`` lists the base classes and what recipes can name.
"""

from abkd.terms._base import LossTerm, OpenTerm
from abkd.terms._base import ModelInfo as ModelInfo
from abkd.terms._base import Needs as Needs
from abkd.terms._base import TermInputs as TermInputs
from abkd.terms._base import TermLoss as TermLoss
from abkd.terms._base import TokenLogProbs as TokenLogProbs
from abkd.terms._base import check_features as check_features
from abkd.terms._base import check_term as check_term
from abkd.terms._base import check_weight as check_weight
from abkd.terms._base import times as times
from abkd.terms._base import whose as whose
from abkd.terms._row_functions import RowFunction, RowTemperature
from abkd.terms._row_functions import Scores as Scores
from abkd.terms._row_weights import RowWeights, TeacherConfidence
from abkd.terms._rows import OpenRowTerm as OpenRowTerm
from abkd.terms._rows import Term
from abkd.terms._rows import base_temperature as base_temperature
from abkd.terms._rows import check_temperature as check_temperature
from abkd.terms._rows import with_facts as with_facts
from abkd.terms._sequence_mixture import teacher_share as teacher_share
from abkd.terms.adakd import ByHardness, Hardest, LossSteered
from abkd.terms.fitnet import FitNet
from abkd.terms.taid import TAID, Interpolated

__all__ = [
    "TAID",
    "ByHardness",
    "FitNet",
    "Hardest",
    "Interpolated",
    "LossSteered",
    "LossTerm",
    "OpenTerm",
    "RowFunction",
    "RowTemperature",
    "RowWeights",
    "TeacherConfidence",
    "Term",
]
