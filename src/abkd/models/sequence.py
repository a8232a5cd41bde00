"""Sequence classifiers of transformers: loading, and their logits as rows, one for each sequence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.data.vocabulary import PROBES, vocabulary_size
from abkd.errors import ConfigError, VocabularyError
from abkd.models.classes import Classes, names_of
from abkd.models.folders import is_adapter
from abkd.models.language import probing
from abkd.models.parts import embedding_matrix, text_config, without_peft
from abkd.models.positions import learned_positions
from abkd.models.pretrained import Kind, check_finite, check_folder, load_pretrained, read_config, with_dtype
from abkd.models.rows import ModelRows, Outputs, call_of
from abkd.models.taps import of_rows, tapped
from abkd.ops import Dense, Rows
from abkd.storage import in_full

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_UNUSED = re.compile(r"(position_ids|rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias)$|(^|\.)pooler\.")
_KIND = Kind("AutoModelForSequenceClassification", "a sequence classifier", _UNUSED)
_OTHER_PROBLEMS = ("regression", "multi_label_classification")
_PROBE, _PADDING = 12, 4  # tokens
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative; 5e-2 for 16-bit dtypes


class SequenceRows(ModelRows):
    """Reads the logits of a sequence classifier, also one wrapped by PEFT: one row for each sequence.

    The logits are few, so no head is looked for. A decoder classifies by the last token that is not padding, which it
    finds by ``pad_token_id`` of its configuration: this is set to the tokenizer's, or, if that has none, both to EOS.

    Args:
        tokenizer: the tokenizer of its inputs.

    Raises:
        ConfigError: the model is not a classifier of two or more classes, or the tokenizer has no token for padding.
        VocabularyError: the tokenizer has tokens that the model does not know.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.forward = call_of(model)  # captured before any wrapping
        base = without_peft(model)
        _check_kind(base)
        _check_vocabulary(base, tokenizer)
        self.padding = _pad_token(tokenizer)
        text_config(base).pad_token_id = self.padding
        self._inputs = inspect.signature(base.forward).parameters.keys()

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return getattr(self.model, "name_or_path", "") or f"the {type(self.model).__name__}"

    @property
    def head_rows(self) -> int:
        """The number of classes of the model."""
        return self.model.config.num_labels

    @property
    def own_classes(self) -> Classes:
        """The number of classes, and their names unless they are only numbers."""
        return Classes(self.head_rows, names_of(self.model.config))

    @property
    def positions(self) -> int | None:
        """The size of the model's position table; None if it has none."""
        return learned_positions(self.model)

    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Rows]:
        """As in :class:`ModelRows`, with logits ``[N, C]``, where row n belongs to sequence ``view.rows[n]``.

        Features are outputs of modules with one entry for each sequence, such as ``bert.pooler``.
        """
        rows: Rows | None = None
        with tapped(self.model, features, stop=stop) as kept:
            rows = Dense(self._logits(view.inputs)[view.rows])
        shape = view.inputs["input_ids"].shape
        for name, value in kept.items():
            if value.ndim > 2 and value.shape[:2] == shape:
                raise ConfigError(f"{name} is one per token, and a row is a text: choose a module after the pooling")
        return Outputs(rows, of_rows(kept, features, shape[:1], view.rows)).first(self.classes)

    def probe(self) -> View:
        inputs = {name: value.repeat(2, 1) for name, value in self._probe_inputs(0).items()}
        return View(inputs=inputs, rows=torch.arange(2, device=inputs["input_ids"].device))

    def of(self, model: nn.Module) -> SequenceRows:
        return SequenceRows(model, self.tokenizer)

    def check(self) -> None:
        """Run the model on a few tokens, alone and padded.

        Raises:
            ConfigError: it fails, does not return one row of logits for a sequence, or padding on the right changes
                them.
        """
        with probing(self.model, "a sequence classifier"):
            logits, padded = self._probed(0), self._probed(_PADDING)
        if (padded - logits).abs().max() > _TOLERANCE.get(self.model.dtype, 5e-2) * logits.abs().max().clamp(min=1e-3):
            raise ConfigError(
                f"{self.name} reads padding: its logits for a text change with padding on the right, so texts of "
                "different lengths cannot share a batch; choose another model"
            )

    def _probed(self, padding: int) -> Tensor:
        """``[1, C]``, float32: the logits of a text, padded on the right."""
        logits = self._logits(self._probe_inputs(padding)).float()
        if logits.shape != (1, self.head_rows):
            raise ConfigError(
                f"{self.name} must return logits [1, {self.head_rows}] for one text, as many as it has labels, got "
                f"{list(logits.shape)}"
            )
        return logits

    def _probe_inputs(self, padding: int) -> dict[str, Tensor]:
        length = min(_PROBE, (self.positions or _PROBE + _PADDING) - _PADDING)
        made = self.tokenizer(PROBES[0], truncation=True, max_length=length)["input_ids"]
        inputs = {"input_ids": [*made, *[self.padding] * padding], "attention_mask": [1] * len(made) + [0] * padding}
        device = embedding_matrix(self.model).device
        return {name: torch.tensor([value], device=device) for name, value in inputs.items()}

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        known = {name: value for name, value in inputs.items() if name in self._inputs}
        options = {"use_cache": False} if "use_cache" in self._inputs else {}
        return self.forward(**known, **options).logits


def load_sequence_classifier(
    name: str, *, what: str, classes: Classes | None = None, student: bool = False, **kwargs: Any
) -> PreTrainedModel:
    """Load ``AutoModelForSequenceClassification`` from a directory or the hub.

    Args:
        what: "model_name_or_path" or "teacher_model_name_or_path", for messages.
        classes: for a student whose checkpoint has no trained head for classes: those of its new head.
        student: missing and unused weights give a warning instead of an error.
        kwargs: for ``from_pretrained``.

    Raises:
        ConfigError: nothing can be loaded, weights are missing or not finite, or it is an adapter.
    """
    name, options = in_full(name), with_dtype(kwargs)
    check_folder(name, what, options)
    if is_adapter(name):
        raise ConfigError(
            f"{what}: {name} holds an adapter, which is not supported for sequence classifiers: merge it into its base "
            "model and save that (merge_and_unload, save_pretrained)"
        )
    config = read_config(_KIND, name, what, options)
    if student and classes is not None and not _has_trained_head(config):
        options = {**_labels(classes), **options}
    model = load_pretrained(_KIND, name, config, what=what, student=student, **options)
    check_finite(model.named_parameters(), f"{what}: {name!r}")
    return model


def name_classes(model: PreTrainedModel, names: Sequence[str] | None) -> None:
    """Set the names of the classes in a model's configuration if it has only numbers."""
    if names is not None and len(names) == model.config.num_labels and names_of(model.config) is None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}


def new_modules(model: PreTrainedModel) -> list[str]:
    """The modules that adapters would not train and a checkpoint may not have: the head, and the backbone's pooler."""
    heads = [name for name, part in model.named_children() if name != model.base_model_prefix and [*part.parameters()]]
    return [*heads, *({"pooler"} & {name.rpartition(".")[2] for name, _ in model.named_modules()})]


def _has_trained_head(config: PretrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _labels(classes: Classes) -> dict[str, object]:
    """The options of ``from_pretrained`` for these classes."""
    if classes.names is None:
        return {"num_labels": classes.number}
    label2id = {name: number for number, name in enumerate(classes.names)}
    return {"num_labels": classes.number, "id2label": dict(enumerate(classes.names)), "label2id": label2id}


def _check_kind(model: object) -> None:
    kind, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(config, "num_labels") or not hasattr(model, "get_input_embeddings"):
        raise ConfigError(
            f"expected a sequence classifier of transformers, got {kind}: load one with "
            "AutoModelForSequenceClassification"
        )
    if config.num_labels < 2 or config.problem_type in _OTHER_PROBLEMS:
        found = config.problem_type or f"{config.num_labels} label"
        raise ConfigError(f"expected a classifier of two or more classes that exclude each other, got {kind}: {found}")


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokens, rows = vocabulary_size(tokenizer), embedding_matrix(model).shape[0]
    if tokens > rows:
        raise VocabularyError(
            f"the tokenizer has {tokens} tokens, and the embedding of {type(model).__name__} only {rows} rows: pass "
            "the model's own tokenizer, or load the model by its name"
        )


def _pad_token(tokenizer: Any) -> int:
    known: int | None = tokenizer.pad_token_id
    if known is not None:
        return known
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has neither a pad token nor EOS: set tokenizer.pad_token")
    tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.eos_token_id)
