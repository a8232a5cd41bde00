"""Parts of transformers models, also wrapped by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def without_peft(model: Any) -> PreTrainedModel:
    """The model inside PEFT's wrapper; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> PretrainedConfig:
    """The text part of a model's configuration; all of it for a text-only model."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def embedding_matrix(model: PreTrainedModel) -> Tensor:
    """``[V, H]``: the embeddings of the tokens."""
    table: Any = model.get_input_embeddings()
    return table.weight
