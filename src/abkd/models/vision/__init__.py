"""Image classifiers by name, by directory or as modules: preprocessing, class names, and logits as rows."""

from __future__ import annotations

from abkd.models.vision._files import check_code, save_classifier
from abkd.models.vision._names import as_classifier, load_classifier
from abkd.models.vision._preparation import Preparation
from abkd.models.vision._processor import preparation_of, write_processor
from abkd.models.vision._rows import Classifier, ImageRows, check_classes
from abkd.models.vision._zoos import ZOOS

__all__ = [
    "ZOOS",
    "Classifier",
    "ImageRows",
    "Preparation",
    "as_classifier",
    "check_classes",
    "check_code",
    "load_classifier",
    "preparation_of",
    "save_classifier",
    "write_processor",
]
