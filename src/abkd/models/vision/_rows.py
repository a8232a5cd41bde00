"""Image classifiers as rows: an image is one row, its logits come from the model as it is.

Both models get the same pixels; each prepares them as it was trained to see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.errors import ConfigError, VocabularyError
from abkd.models.rows import ModelRows
from abkd.models.vision._preparation import Preparation
from abkd.ops import Dense

_SIDE = 32  # of the images that a model is tried on which does not say what side it wants


class Classifier(NamedTuple):
    """A model that returns logits ``[B, C]`` (or something with ``.logits``), and how it wants its pixels.

    ``class_names``: the names of its C classes in order, where they are known. ``source``: the name it was made from,
    and ``options``: what it was built with, such as ``num_classes``, where that name alone does not tell.
    """

    model: nn.Module
    preparation: Preparation = Preparation()
    class_names: tuple[str, ...] | None = None
    source: str = ""
    options: Mapping[str, Any] | None = None


class ImageRows(ModelRows):
    """Reads the logits of images out of a classifier.

    Args:
        classes: how many of its classes are used (None: all).
        side: of the images that it is going to see, for a model that takes no other and does not say so.
    """

    def __init__(self, classifier: Classifier, *, classes: int | None = None, side: int | None = None) -> None:
        self.classifier = classifier
        self.model = classifier.model
        self.classes = classes
        self.forward: Callable[..., Any] = self.model.forward  # before anything wraps it
        self._side = side
        self._head_rows: int | None = None

    @property
    def head_rows(self) -> int:
        """How many classes the model tells apart, seen in its logits.

        Raises ConfigError where it gives no logits ``[B, C]``.
        """
        if self._head_rows is None:
            self._head_rows = self._probe().shape[-1]
        return self._head_rows

    def __call__(self, view: View) -> Dense:
        """``[N, C]``, row n of image ``view.rows[n]``."""
        rows = Dense(self._logits(view.inputs["pixels"])[view.rows])
        return rows if self.classes is None else rows.first(self.classes)

    def of(self, model: Any) -> ImageRows:
        return ImageRows(self.classifier._replace(model=model), classes=self.classes, side=self._side)

    def check(self) -> None:
        """Prove that the model gives logits, one for each of the classes it names.

        Raises:
            ConfigError: it gives something else, such as probabilities.
            VocabularyError: it has another number of classes than names.
        """
        logits, names = self._probe().float(), self.classifier.class_names
        if (logits >= 0).all() and (logits.sum(-1) - 1).abs().max() < 1e-3:
            raise ConfigError(
                f"{_called(self.classifier)} gives probabilities, and logits are wanted: leave out its last softmax"
            )
        if names is not None and len(names) != logits.shape[-1]:
            raise VocabularyError(
                f"{_called(self.classifier)} names {len(names)} classes and gives {logits.shape[-1]} logits: give it "
                "the names of its own classes, or none"
            )

    def _logits(self, pixels: Tensor) -> Tensor:
        images = self.classifier.preparation(pixels)
        out = self.forward(images.to(_number_type(self.model)))
        if isinstance(out, Tensor):
            return out
        return out.logits if hasattr(out, "logits") else out[0]

    @torch.no_grad()
    def _probe(self) -> Tensor:
        """``[2, C]``, the logits of a grey and of a striped image."""
        side = self.classifier.preparation.size or self._side or _SIDE
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        pixels = torch.full((2, 3, side, side), 128, dtype=torch.uint8, device=device)
        pixels[1, :, ::2] = 0
        with _in_eval_mode(self.model):
            try:
                logits = self._logits(pixels)
            except (RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"{_called(self.classifier)} cannot read images of shape [B, 3, {side}, {side}] ({error}). If it "
                    "wants another side, say so: Classifier(model, Preparation(size=…))"
                ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
            came = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(f"{_called(self.classifier)} gives {came} for 2 images, and logits [2, C] are wanted")
        return logits


def _called(classifier: Classifier) -> str:
    return classifier.source or f"the {type(classifier.model).__name__}"


def _number_type(model: nn.Module) -> torch.dtype:
    """What a model reckons in; quantised weights do not tell."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Each part of the model gets its own mode back."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
