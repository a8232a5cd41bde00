"""Rows of causal language models: hidden states and a head, or logits if the head is not a plain matrix."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abkd.data import View
from abkd.errors import AbkdError, ConfigError
from abkd.models.parts import embedding_matrix, text_config, without_peft
from abkd.models.positions import first_position, learned_positions
from abkd.models.pretrained import in_short
from abkd.models.rows import ModelRows, Outputs, call_of, has_hooks
from abkd.models.taps import is_last, layers_of, of_rows, tapped
from abkd.ops import Dense, Head, Projected, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("abkd")

_PROBE_TOKENS = 8
_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative; 3e-2 for 16-bit dtypes


class CausalRows(ModelRows):
    """Reads rows from a causal language model of transformers, also one wrapped by PEFT.

    The head is used as a matrix with the scale, bias and soft-cap of the configuration. :meth:`check` compares the
    result with the model's own logits; if they differ (an adapter on the head, a scale missing from the configuration),
    the model's logits are used directly, which only costs memory.
    """

    def __init__(self, model: nn.Module, *, classes: int | None = None) -> None:
        self.model = model
        self.forward = call_of(model)  # captured before any wrapping
        self.classes = classes
        self.language_model = without_peft(model)
        _check_kind(self.language_model)
        self.first_position = first_position(self.language_model)
        self.dense_because = _not_a_matrix(self.language_model)
        if has_hooks(model) or has_hooks(self.language_model):
            self.dense_because = "it has hooks on itself, which only run when the whole model is called"

    @property
    def head(self) -> Head:
        """The current head; under sharding its tensors change from step to step."""
        module: Any = self.language_model.get_output_embeddings()
        config = text_config(self.language_model)
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None))

    @property
    def head_rows(self) -> int:
        """Rows of the model's own head matrix."""
        module: Any = self.language_model.get_output_embeddings()
        return module.weight.shape[0]

    def read(self, view: View, features: Sequence[str] = (), *, stop: bool = False) -> Outputs[Rows]:
        inputs = view.inputs_for(self.language_model)
        if self.first_position:
            inputs = {**inputs, "position_ids": inputs["position_ids"] + self.first_position}
        if self.dense_because is None and _in_shards(self.head.weight):
            self.dense_because = "its head is sharded separately; shard it with the root module to avoid this"
            self._say_dense()
        self.auxiliary_loss = None
        rows: Rows | None = None
        model, layers = self.language_model, self._layers() if features else []
        dense = self.dense_because is not None
        with tapped(model, features, layers, model.get_output_embeddings() if dense else None, stop=stop) as kept:
            if dense:
                rows = Dense(self._logits(inputs).flatten(0, 1)[view.rows])
            else:
                hidden = self._hidden(inputs)
                kept |= {name: hidden for name in features if is_last(name, layers)}
                rows = Projected(hidden.flatten(0, 1)[view.rows], self.head)
        return Outputs(rows, of_rows(kept, features, view.inputs["input_ids"].shape, view.rows)).first(self.classes)

    def _layers(self) -> list[nn.Module]:
        count = getattr(text_config(self.language_model), "num_hidden_layers", 0)
        return layers_of(_backbone(self.language_model), count)

    def probe(self) -> View:
        return self._probe_view(self._probe_ids())

    def _probe_view(self, ids: Tensor) -> View:
        inputs = {**self._inputs(ids), "position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
        return View(inputs=inputs, rows=torch.arange(ids.shape[1], device=ids.device))

    def of(self, model: nn.Module) -> CausalRows:
        return CausalRows(model)

    def check(self) -> None:
        """Run the model on a few tokens: it must be causal, and its logits should equal ``head(hidden)``.

        If they differ, the model's logits are used directly.

        Raises:
            ConfigError: the model fails on these tokens, its output at a position depends on later tokens, or passing
                position_ids 0, 1, 2, … changes its output.
        """
        with probing(self.model, "a causal language model"):
            ids = self._probe_ids()
            logits = self._logits(self._inputs(ids))
            self._check_causal(ids, logits)
            self._check_positions(ids, logits)
            if self.dense_because is None:
                self.dense_because = self._compare(ids, logits)
        if self.dense_because is not None:
            self._say_dense()

    def _probe_ids(self) -> Tensor:
        """``[1, T]`` without padding, T at most 8 and at most the size of the model's position table."""
        count = min(_PROBE_TOKENS, learned_positions(self.language_model) or _PROBE_TOKENS)
        device = embedding_matrix(self.language_model).device
        padding = getattr(text_config(self.language_model), "pad_token_id", None)
        ids = [token % self.head_rows for token in range(1, count + 2)]
        return torch.tensor([[token for token in ids if token != padding][:count]], device=device)

    def _check_causal(self, ids: Tensor, logits: Tensor) -> None:
        """Changing the tokens from some position on must not change any output before it.

        The tolerance is relative to the change from that position on. Positions near both ends detect attention to the
        next token, to the whole sequence, and to a bidirectional prefix.
        """
        length = ids.shape[1]
        for place in sorted({1, length // 2, length - 1} - {0}):
            other = ids.clone()
            other[:, place:] = (other[:, place:] + length) % self.head_rows
            change = (self._logits(self._inputs(other)) - logits).float().abs()
            leak, effect = change[:, :place].max(), change[:, place:].max()
            if leak > self._tolerance * effect:
                raise ConfigError(
                    f"{_name(self.language_model)} is not a causal language model: its prediction at a position "
                    "depends on later tokens, so it would see the tokens that it has to predict (as masked language "
                    "models such as BERT do); choose a decoder-only model"
                )

    def _check_positions(self, ids: Tensor, logits: Tensor) -> None:
        """Without ``position_ids``, the model must compute the same as with the ones that are passed here."""
        inputs = self._inputs(ids)
        del inputs["position_ids"]
        try:
            alone = self._logits(inputs)
        except Exception:  # noqa: BLE001  # third-party code that requires position_ids
            return
        gap = (alone - logits).float().abs().max()
        if gap > self._tolerance * logits.float().abs().max():
            raise ConfigError(
                f"{_name(self.language_model)} uses nonstandard position ids: with position_ids 0, 1, 2, … its logits "
                "differ from those without, so padded and packed sequences cannot be read; choose another model"
            )

    def _inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """The model's inputs for one sequence without padding."""
        positions = torch.arange(ids.shape[1], device=ids.device)[None] + self.first_position
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}

    @property
    def _tolerance(self) -> float:
        return _PROBE_TOLERANCE.get(self.language_model.dtype, 3e-2)

    def _say_dense(self) -> None:
        logger.warning(
            "abkd: %s is read through its logits, which takes more memory: %s",
            type(self.model).__name__,
            self.dense_because,
        )

    def _compare(self, ids: Tensor, logits: Tensor) -> str | None:
        """Why these logits are not ``head(hidden)``; None if they are."""
        try:
            ours = self(self._probe_view(ids)).logits(slice(None)).float()
        except Exception as error:  # noqa: BLE001  # the whole model runs, so its backbone cannot be used alone
            return f"its backbone cannot be run by itself ({in_short(error)})"
        theirs = logits.float()[0, :, : ours.shape[-1]]
        gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
        if gap <= self._tolerance:
            return None
        return f"its logits differ from those of its head by {gap:.1%}"

    def _hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[B, T, H]``, the input of the head."""
        backbone = _backbone(self.language_model)
        if not self._balances():
            return backbone(**inputs, use_cache=False).last_hidden_state
        kept: list[Tensor] = []  # only the full forward, here with logits of one token, computes the router loss
        hook = backbone.register_forward_hook(lambda _, __, output: kept.append(output.last_hidden_state))
        try:
            self._run(inputs, logits_to_keep=1)
        finally:
            hook.remove()
        return kept[0]

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._run(inputs).logits

    def _run(self, inputs: Mapping[str, Tensor], **options: object) -> Any:
        output = self.forward(**inputs, use_cache=False, **options)
        if self._balances():
            self.auxiliary_loss = self.router_loss_weight * output.aux_loss
        return output

    def _balances(self) -> bool:
        """Whether this forward's router loss is trained on."""
        return self.router_loss_weight > 0 and self.model.training and torch.is_grad_enabled()

    @property
    def router_loss_weight(self) -> float:
        """The weight of a mixture-of-experts model's load-balancing loss; 0 unless its configuration enables it."""
        config = text_config(self.language_model)
        if not getattr(config, "output_router_logits", False):
            return 0.0
        own = getattr(self.language_model, "router_aux_loss_coef", None)
        return float((getattr(config, "router_aux_loss_coef", None) if own is None else own) or 0.0)


@contextmanager
def probing(model: nn.Module, kind: str) -> Iterator[None]:
    """Try a model out in eval mode, without gradient; any error means that it cannot be used.

    Args:
        kind: what it is used as, for the message.

    Raises:
        ConfigError: in place of any other error.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    except AbkdError:
        raise
    except Exception as error:  # from third-party code; each means that the model cannot be used
        raise ConfigError(
            f"{_name(model)} fails on a few tokens as {kind} of transformers "
            f"({in_short(error)}): choose a model that takes input_ids of any length and returns an output with logits"
        ) from error
    finally:
        model.train(training)


def _name(model: object) -> str:
    """A model's class, and its name or path if known."""
    kind, origin = type(model).__name__, getattr(model, "name_or_path", "")
    return f"{kind} ({origin})" if origin else kind


def _check_kind(model: PreTrainedModel) -> None:
    """Raise ConfigError if a module is not a language model of transformers with a head."""
    needed = ("config", "dtype", "get_input_embeddings", "get_output_embeddings")
    if not all(hasattr(model, name) for name in needed):
        raise ConfigError(
            f"a language model must be a causal language model of transformers, got {type(model).__name__}: load one "
            "with AutoModelForCausalLM, or set task='image-classification' for a classifier"
        )
    if not hasattr(model.get_output_embeddings(), "weight"):
        raise ConfigError(
            f"{_name(model)} has no head over the vocabulary: load it with AutoModelForCausalLM, not as a bare backbone"
        )


def _backbone(model: PreTrainedModel) -> nn.Module:
    """The module that computes the hidden states; in some families only ``get_decoder`` finds it."""
    if model.base_model is model and hasattr(model, "get_decoder"):
        return model.get_decoder()
    return model.base_model


def _not_a_matrix(model: PreTrainedModel) -> str | None:
    if _backbone(model) is model:
        return "it has no separate backbone"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"its head is a {type(head).__name__}, not a plain linear layer"
    return None


def _in_shards(weight: Tensor) -> bool:
    """Whether this process holds only a shard (FSDP2 gathers the root's parameters before the forward)."""
    return hasattr(weight, "full_tensor")
