"""Image classifiers as rows: an image is one row, its logits come from the model as it is.

Both models get the same pixels; each prepares them as it was trained to see them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.errors import ConfigError, VocabularyError
from abkd.models.rows import ModelRows, call_of
from abkd.models.vision._outputs import fitting, in_eval_mode, logits_in, untouched
from abkd.models.vision._preparation import Preparation
from abkd.ops import Dense

logger = logging.getLogger("abkd")

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SIDE = 32  # of the images that a model is tried on which does not say what side it wants


class Classifier(NamedTuple):
    """A model that returns logits ``[B, C]``, and how it wants its pixels.

    Logits may also stand first in a tuple, or be called ``logits`` in a dict or in an object. A model whose first layer
    reads one channel sees images in grey.

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
        side: of the images that it is going to see, or (H, W), for a model that takes no other and does not say so.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        classes: int | None = None,
        side: int | tuple[int, int] | None = None,
    ) -> None:
        self.classifier = classifier
        self.model = classifier.model
        self.classes = classes
        self.forward: Callable[..., Any] = call_of(self.model)  # before anything wraps it
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

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return self.classifier.source or f"the {type(self.classifier.model).__name__}"

    def __call__(self, view: View) -> Dense:
        """``[N, C]``, row n of image ``view.rows[n]``."""
        rows = Dense(self._logits(view.inputs["pixels"])[view.rows])
        return rows if self.classes is None else rows.first(self.classes)

    def of(self, model: Any) -> ImageRows:
        classifier = self.classifier._replace(model=model)
        return ImageRows(classifier, classes=self.classes, side=self._side)

    def check(self) -> None:
        """Prove that the model gives logits, one for each of the classes it names, for one image as for several.

        Raises:
            ConfigError: it gives something else, such as probabilities.
            VocabularyError: it has another number of classes than names.
        """
        logits, names = self._probe().float(), self.classifier.class_names
        if (logits >= 0).all() and (logits.sum(-1) - 1).abs().max() < 1e-3:
            raise ConfigError(f"{self.name} gives probabilities, and logits are wanted: leave out its last softmax")
        if names is not None and len(names) != logits.shape[-1]:
            raise VocabularyError(
                f"{self.name} names {len(names)} classes and gives {logits.shape[-1]} logits: give it "
                "the names of its own classes, or none"
            )
        self._tried(1)

    @torch.no_grad()
    def learns_from_one(self, size: tuple[int, int]) -> bool:
        """Whether the model in training takes a batch of one image of this size (H, W): batch normalisation may not."""
        if not any(isinstance(part, _BATCH_NORM) for part in self.model.modules()):
            return True
        with untouched(self.model):
            self.model.train()
            try:
                self._logits(self._pixels(1, size))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                return False
        return True

    def has_gradient(self) -> bool:
        """Whether the logits depend on a parameter that is trained: a network may be cut by ``detach``."""
        with untouched(self.model), torch.enable_grad():
            return self._logits(self._pixels(2, self._size())).requires_grad

    def _logits(self, pixels: Tensor) -> Tensor:
        images = self.classifier.preparation(pixels)
        return logits_in(self.forward(images.to(_number_type(self.model))), self.name)

    def _probe(self) -> Tensor:
        """``[2, C]``, the logits of a grey and of a striped image."""
        logits = self._tried(2)
        if logits.shape[1] < 2 or not logits.is_floating_point():
            raise ConfigError(
                f"{self.name} gives {list(logits.shape)} numbers of type {logits.dtype} for 2 images: expected "
                "floating-point logits [2, C] of at least two classes"
            )
        return logits

    @torch.no_grad()
    def _tried(self, count: int) -> Tensor:
        """The logits ``[count, C]`` of so many images, which the model looks at in eval mode."""
        with in_eval_mode(self.model):
            try:
                logits = self._in_its_channels(count)
            except ConfigError:
                raise
            except Exception as error:  # somebody else's code can raise anything
                raise ConfigError(self._unreadable(count, error)) from error
        if logits.ndim != 2 or len(logits) != count:
            raise ConfigError(
                f"{self.name} gives {list(logits.shape)} for {count} images, and logits [{count}, C] are wanted"
            )
        return logits

    def _in_its_channels(self, count: int) -> Tensor:
        """The logits of images in colour, or else, and from then on, in grey."""
        pixels = self._pixels(count, self._size())
        try:
            return self._logits(pixels)
        except Exception:
            if self.classifier.preparation.grey or not self._reads_grey(pixels):
                raise
        return self._logits(pixels)

    def _reads_grey(self, pixels: Tensor) -> bool:
        in_colour = self.classifier
        self.classifier = in_colour._replace(preparation=replace(in_colour.preparation, grey=True))
        with suppress(Exception):  # then the other one, of colour, is raised
            self._logits(pixels)
            logger.info("abkd: %s reads one channel: it sees images in grey", self.name)
            return True
        self.classifier = in_colour
        return False

    def _size(self) -> tuple[int, int]:
        """(H, W) of the images that the model is tried on."""
        side = self.classifier.preparation.size or self._side or _SIDE
        return side if isinstance(side, tuple) else (side, side)

    def _pixels(self, count: int, size: tuple[int, int]) -> Tensor:
        """``[count, 3, H, W]``: a grey image, and striped ones."""
        pixels = torch.full((count, 3, *size), 128, dtype=torch.uint8, device=_device(self.model))
        pixels[1:, :, ::2] = 0
        return pixels

    def _unreadable(self, count: int, error: Exception) -> str:
        """Why the model cannot be used; with a side that it takes, where one is found."""
        said = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        (height, width), like = self._size(), {"dtype": _number_type(self.model), "device": _device(self.model)}
        mine = 1 if self.classifier.preparation.grey else 3
        shape = f"{self.name} cannot read images of shape [{count}, {mine}, {height}, {width}] ({said})"
        found = fitting(lambda channels, side: self.forward(torch.zeros(2, channels, side, side, **like)))
        if found is None:
            return f"{shape}. If it wants another side, say so: Classifier(model, Preparation(size=…))"
        channels, side = found
        return (
            f"{shape}. It does read [B, {channels}, {side}, {side}]: set image_size: {side}, or in Python give "
            f"Classifier(model, Preparation(size={side}))"
        )


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _number_type(model: nn.Module) -> torch.dtype:
    """What a model reckons in; quantised weights do not tell."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
