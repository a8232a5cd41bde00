"""Causal language models as rows: hidden states and a head, or logits where the head is no plain matrix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.models.rows import ModelRows
from abkd.ops import Dense, Head, Projected
from abkd.ops._types import Rows

logger = logging.getLogger("abkd")

_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit; 3e-2 in 16 bits


class CausalRows(ModelRows):
    """Reads rows out of a causal language model of transformers, also one wrapped by PEFT.

    The head is taken as a matrix with the scale, bias and soft-cap that the configuration tells. :meth:`check` compares
    that with the model's own logits; where they differ (an adapter on the head, a scale nobody told) the model's logits
    are used as they are, which costs memory and nothing else.
    """

    def __init__(self, model: Any, *, classes: int | None = None) -> None:
        self.model = model
        self.forward: Callable[..., Any] = model.forward  # before anything wraps it
        self.classes = classes
        self.language_model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.dense_because = _not_a_matrix(self.language_model)

    @property
    def head(self) -> Head:
        """The head as it is now; under sharding its tensors change from step to step."""
        module = self.language_model.get_output_embeddings()
        config = _text_config(self.language_model)
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None))

    @property
    def head_rows(self) -> int:
        """Rows of the model's own head matrix."""
        return self.language_model.get_output_embeddings().weight.shape[0]

    def __call__(self, view: View) -> Rows:
        """The rows that ``view`` selects: ``Projected`` ``[N, H]``, or ``Dense`` ``[N, V]``."""
        inputs = view.inputs_for(self.language_model)
        if self.dense_because is None and _in_shards(self.head.weight):
            self.dense_because = "its head is sharded on its own; leave it to the root of the model to mend that"
            self._say_dense()
        if self.dense_because is not None:
            rows: Rows = Dense(self._logits(inputs).flatten(0, 1)[view.rows])
        else:
            hidden = _backbone(self.language_model)(**inputs, use_cache=False).last_hidden_state
            rows = Projected(hidden.flatten(0, 1)[view.rows], self.head)
        return rows if self.classes is None else rows.first(self.classes)

    def of(self, model: Any) -> CausalRows:
        return CausalRows(model)

    def check(self) -> None:
        """Compare ``head(hidden)`` with the model's own logits on a probe; fall back to logits where they differ."""
        if self.dense_because is None:
            self.dense_because = self._probe()
        if self.dense_because is not None:
            self._say_dense()

    def _say_dense(self) -> None:
        logger.warning(
            "abkd: %s is read through its logits, which takes more memory: %s",
            type(self.model).__name__,
            self.dense_because,
        )

    @torch.no_grad()
    def _probe(self) -> str | None:
        training = self.model.training
        self.model.eval()
        device = self.language_model.get_input_embeddings().weight.device
        ids = torch.arange(1, 9, device=device)[None] % self.head_rows
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(8, device=device)[None],
        }
        theirs = self._logits(inputs).float()
        ours = self(View(inputs=inputs, rows=torch.arange(8, device=device))).logits(slice(None)).float()
        self.model.train(training)
        theirs = theirs[0, :, : ours.shape[-1]]
        gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
        if gap <= _PROBE_TOLERANCE.get(self.language_model.dtype, 3e-2):
            return None
        return f"its logits differ from those of its head by {gap:.1%}"

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.forward(**inputs, use_cache=False).logits


def _backbone(model: Any) -> Any:
    """What makes the hidden states; some families are told apart from it by ``get_decoder`` alone."""
    if model.base_model is model and hasattr(model, "get_decoder"):
        return model.get_decoder()
    return model.base_model


def _not_a_matrix(model: Any) -> str | None:
    if _backbone(model) is model:
        return "it has no backbone of its own"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"its head is a {type(head).__name__}, not a plain linear layer"
    return None


def _in_shards(weight: Tensor) -> bool:
    """Whether this process holds a part of it only (FSDP2 gathers the root's parameters before the forward)."""
    return hasattr(weight, "full_tensor")


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
