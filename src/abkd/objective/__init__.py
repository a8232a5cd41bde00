"""The objective of a run: what is minimised, and its terms opened for one run."""

from abkd.objective._columns import Columns, StepScores
from abkd.objective._open import ObjectiveLoss, OpenObjective
from abkd.objective._spec import Objective

__all__ = ["Columns", "Objective", "ObjectiveLoss", "OpenObjective", "StepScores"]
