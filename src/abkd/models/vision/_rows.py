"""Rows of image classifiers: each image is one row, with the model's own logits.

Both models get the same pixels; each applies its own preprocessing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.errors import ConfigError, VocabularyError
from abkd.models.classes import Classes, check_same_classes
from abkd.models.rows import ModelRows, Outputs, call_of
from abkd.models.taps import of_rows, tapped
from abkd.models.vision._outputs import fitting, in_eval_mode, logits_in, untouched
from abkd.models.vision._preparation import Preparation
from abkd.ops import Dense, Rows

logger = logging.getLogger("abkd")

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SIDE = 32  # side of the test images for a model without a known input size


class Classifier(NamedTuple):
    """A model that returns logits ``[B, C]``, with its preprocessing.

    Logits may also be the first entry of a tuple, or the entry or attribute ``logits``. A model whose first layer reads
    one channel gets greyscale images.

    ``class_names``: the names of its C classes in order, if known. ``source``: the name it was built from, and
    ``options``: the options it was built with, such as ``num_classes``, if the name alone is not enough.
    """

    model: nn.Module
    preparation: Preparation = Preparation()
    class_names: tuple[str, ...] | None = None
    source: str = ""
    options: Mapping[str, object] | None = None


class ImageRows(ModelRows):
    """Reads the logits of images from a classifier.

    Args:
        classes: how many of its classes are used (None: all).
        side: the side of the data's images, or (H, W), for a model that takes this size only and does not declare it.
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
        self.forward = call_of(self.model)  # captured before any wrapping
        self._side = side
        self._head_rows: int | None = None

    @property
    def head_rows(self) -> int:
        """The number of classes of the model, taken from its logits.

        Raises ConfigError if it does not return logits ``[B, C]``.
        """
        if self._head_rows is None:
            self._head_rows = self._probe().shape[-1]
        return self._head_rows

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return self.classifier.source or f"the {type(self.classifier.model).__name__}"

    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Rows]:
        """As in :class:`ModelRows`, with logits ``[N, C]``, where row n belongs to image ``view.rows[n]``."""
        pixels: Tensor = view.inputs["pixels"]
        rows: Rows | None = None
        with tapped(self.model, features, stop=stop) as kept:
            rows = Dense(self._logits(pixels)[view.rows])
        return Outputs(rows, of_rows(kept, features, pixels.shape[:1], view.rows)).first(self.classes)

    def probe(self) -> View:
        pixels = self._pixels(2, self._size())
        return View(inputs={"pixels": pixels}, rows=torch.arange(2, device=pixels.device))

    def of(self, model: nn.Module) -> ImageRows:
        classifier = self.classifier._replace(model=model)
        return ImageRows(classifier, classes=self.classes, side=self._side)

    def check(self) -> None:
        """Check that the model returns logits, as many as it has class names, for one image and for several.

        Raises:
            ConfigError: it returns something else, such as probabilities.
            VocabularyError: its number of logits differs from its number of class names.
        """
        logits, names = self._probe().float(), self.classifier.class_names
        if (logits >= 0).all() and (logits.sum(-1) - 1).abs().max() < 1e-3:
            raise ConfigError(f"{self.name} must return logits, got probabilities: remove its final softmax")
        if names is not None and len(names) != logits.shape[-1]:
            raise VocabularyError(
                f"{self.name} has {len(names)} class names but returns {logits.shape[-1]} logits: set the names of its "
                "own classes, or none"
            )
        self._tried(1)

    @torch.no_grad()
    def learns_from_one(self, size: tuple[int, int]) -> bool:
        """Whether the model takes a batch of one image of this size (H, W) in train mode: batch norm may not."""
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
        """Whether the logits depend on a trainable parameter: a ``detach`` may cut the graph."""
        with untouched(self.model), torch.enable_grad():
            return self._logits(self._pixels(2, self._size())).requires_grad

    def _logits(self, pixels: Tensor) -> Tensor:
        images = self.classifier.preparation(pixels)
        return logits_in(self.forward(images.to(_dtype(self.model))), self.name)

    def _probe(self) -> Tensor:
        """``[2, C]``, the logits of a uniform grey and a striped image."""
        logits = self._tried(2)
        if logits.shape[1] < 2 or not logits.is_floating_point():
            raise ConfigError(
                f"{self.name} must return floating-point logits [2, C] of at least two classes for 2 images, got "
                f"{list(logits.shape)} of {logits.dtype}"
            )
        return logits

    @torch.no_grad()
    def _tried(self, count: int) -> Tensor:
        """The logits ``[count, C]`` of ``count`` images in eval mode."""
        with in_eval_mode(self.model):
            try:
                logits = self._in_its_channels(count)
            except ConfigError:
                raise
            except Exception as error:  # third-party code can raise anything
                raise ConfigError(self._unreadable(count, error)) from error
        if logits.ndim != 2 or len(logits) != count:
            raise ConfigError(
                f"{self.name} must return logits [{count}, C] for {count} images, got shape {list(logits.shape)}"
            )
        return logits

    def _in_its_channels(self, count: int) -> Tensor:
        """The logits of colour images; if they fail, of greyscale ones, from then on."""
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
        with suppress(Exception):  # if this fails too, the error for colour is raised
            self._logits(pixels)
            logger.info("abkd: %s reads one channel: it gets greyscale images", self.name)
            return True
        self.classifier = in_colour
        return False

    def _size(self) -> tuple[int, int]:
        """(H, W) of the test images."""
        side = self.classifier.preparation.size or self._side or _SIDE
        return side if isinstance(side, tuple) else (side, side)

    def _pixels(self, count: int, size: tuple[int, int]) -> Tensor:
        """``[count, 3, H, W]``: a uniform grey image, then striped ones."""
        pixels = torch.full((count, 3, *size), 128, dtype=torch.uint8, device=_device(self.model))
        pixels[1:, :, ::2] = 0
        return pixels

    def _unreadable(self, count: int, error: Exception) -> str:
        """The message for a model that fails on images; with a size that it accepts, if one is found."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        (height, width), like = self._size(), {"dtype": _dtype(self.model), "device": _device(self.model)}
        mine = 1 if self.classifier.preparation.grey else 3
        shape = f"{self.name} cannot read images of shape [{count}, {mine}, {height}, {width}] ({reason})"
        found = fitting(lambda channels, side: self.forward(torch.zeros(2, channels, side, side, **like)))
        if found is None:
            return f"{shape}. If it needs another size, pass Classifier(model, Preparation(size=…))"
        channels, side = found
        return (
            f"{shape}. It accepts [B, {channels}, {side}, {side}]: set image_size: {side}, or in Python pass "
            f"Classifier(model, Preparation(size={side}))"
        )


def check_classes(
    student: Classifier | ImageRows, teacher: Classifier | ImageRows, class_names: Sequence[str] | None
) -> None:
    """Check that class c is the same for student, teacher and data: same number of classes, same names in order.

    Case, ``_`` and ``-`` do not matter; of several names separated by commas, one match is enough. Numbers and
    WordNet's ``n01440764`` are no names, and only refused if they are the same ones in another order.

    Raises:
        VocabularyError: with the first class that differs.
    """
    mine, theirs = (each if isinstance(each, ImageRows) else ImageRows(each) for each in (student, teacher))
    of_student, of_teacher = (Classes(rows.head_rows, rows.classifier.class_names) for rows in (mine, theirs))
    check_same_classes(of_student, of_teacher, class_names)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's floating-point weights; quantised weights have another."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
