"""Loading of language models and tokenizers by name or directory; each failure is one sentence with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from abkd.data.vocabulary import check_deterministic
from abkd.errors import ConfigError
from abkd.models.adapters import adapter_config, base_of, read_adapter
from abkd.models.finite import is_finite
from abkd.models.folders import is_adapter, missing_folder
from abkd.models.parts import embedding_matrix, text_config
from abkd.models.pretrained import (
    Kind,
    check_finite,
    check_folder,
    in_short,
    load_pretrained,
    read_config,
    with_dtype,
)
from abkd.models.remarks import logger
from abkd.storage import in_full

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Model = TypeVar("_Model", bound=nn.Module)

# Tensors that a checkpoint may hold in addition to the language model: computed buffers, value heads, multi-token
# prediction heads, the vision and audio towers of multimodal models.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$|position_ids$|(^|\.)(mtp|v_head|vision_tower|vision_model|visual"
    r"|audio_tower|multi_modal_projector|embed_vision|embed_audio)\."
)
_CAUSAL_LM = Kind("AutoModelForCausalLM", "a causal language model", _UNUSED)
_VOCABULARIES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "spiece*", "*.gguf")


def load_causal_lm(name_or_path: str, *, what: str, student: bool = False, **kwargs: Any) -> Any:
    """Load a causal language model; an adapter directory gives its base model with the adapter on it.

    Args:
        what: "model_name_or_path" or "teacher_model_name_or_path", for messages.
        student: missing and unused weights give a warning instead of an error, and an adapter is trainable.
        kwargs: for ``from_pretrained``. Code in a model directory is not run unless ``trust_remote_code`` is set.

    Raises:
        ConfigError: nothing can be loaded, weights are missing or not finite, or it is not a causal language model.
    """
    name_or_path, kwargs = in_full(name_or_path), with_dtype(kwargs)
    check_folder(name_or_path, what, kwargs)
    if is_adapter(name_or_path):
        return _with_adapter(name_or_path, what=what, student=student, **kwargs)
    config = read_config(_CAUSAL_LM, name_or_path, what, kwargs)
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{what}: expected a causal (decoder-only) language model, got {name_or_path!r}, an encoder-decoder model "
            f"({config.model_type}); choose a decoder-only model"
        )
    model = load_pretrained(_CAUSAL_LM, name_or_path, config, what=what, student=student, **kwargs)
    _check_weights(model, f"{what}: {name_or_path!r}", student=student)
    _untie(model, name_or_path, what)
    return model


def _untie(model: PreTrainedModel, name: str, what: str) -> None:
    """Correct ``tie_word_embeddings``: transformers does not tie a head that the file stores with other values."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    configs = [each for each in (model.config, text_config(model)) if getattr(each, "tie_word_embeddings", False)]
    if head is None or not configs or head is embedding_matrix(model):
        return
    for config in configs:
        config.tie_word_embeddings = False
    logger.warning(
        "abkd: %s: %r has separate weights for its head, although its config.json ties it to the embedding "
        "(tie_word_embeddings); they stay untied",
        what,
        name,
    )


def load_student(name_or_path: str, *, use_peft: bool, **kwargs: Any) -> Any:
    """Load the initial student of a run. A trained adapter is kept: training continues from it, or it is merged.

    Args:
        use_peft: whether only adapters are trained.
        kwargs: as for :func:`load_causal_lm`.

    Raises:
        ConfigError: as :func:`load_causal_lm`.
    """
    model = load_causal_lm(name_or_path, what="model_name_or_path", student=True, **kwargs)
    if not is_adapter(name_or_path):
        return model
    if use_peft:
        logger.info("abkd: training continues from the adapter in %s, with its rank and its layers", name_or_path)
        return model
    logger.info(
        "abkd: the adapter in %s is merged into its base model, and all weights are trained (set use_peft: true to "
        "train only the adapter)",
        name_or_path,
    )
    return model.merge_and_unload().requires_grad_(True)


def teacher_options(given: object, device: torch.device, revision: str | None = None) -> dict[str, Any]:
    """Options to load a teacher with: bf16 on a GPU; ``teacher_model_init_kwargs`` take precedence."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"dtype": dtype, **(with_dtype(given) or {}), **({"revision": revision} if revision else {})}


def placed(model: _Model, device: torch.device) -> _Model:
    """``model`` moved to ``device``; a quantised one stays where it was loaded."""
    return model.to(device) if getattr(model, "quantization_method", None) is None else model


def load_tokenizer(name_or_path: str, *, what: str, **kwargs: object) -> Any:
    """``AutoTokenizer.from_pretrained``, with checks.

    Raises:
        ConfigError: there is no tokenizer, or it cannot be used.
    """
    from transformers import AutoTokenizer

    name_or_path = in_full(name_or_path)
    if missing := missing_folder(name_or_path):
        raise ConfigError(f"{what}: {missing}")
    folder = Path(name_or_path)
    if folder.is_dir() and not any(file for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        if is_adapter(name_or_path):  # PEFT saves no tokenizer with it
            base = base_of(name_or_path, adapter_config(name_or_path, what), what)
            return load_tokenizer(base, what=what)
        raise ConfigError(f"{what}: no tokenizer in {name_or_path!r}, {_TOKENIZER_WAY_OUT}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **{"trust_remote_code": False, **kwargs})
    except Exception as error:  # as above
        if (folder / "config.json").is_file():  # AutoTokenizer reads it too
            read_config(_CAUSAL_LM, name_or_path, what, kwargs)
        raise ConfigError(
            f"{what}: cannot load a tokenizer from {name_or_path!r} ({in_short(error)}); {_TOKENIZER_WAY_OUT}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ConfigError(f"{what}: the tokenizer in {name_or_path!r} has no vocabulary, {_TOKENIZER_WAY_OUT}")
    check_deterministic(tokenizer, what)
    return tokenizer


_TOKENIZER_WAY_OUT = "download or save it again (tokenizer.save_pretrained), with all of its files"


def _check_weights(model: PreTrainedModel, whose: str, *, student: bool) -> None:
    """:func:`check_finite`; a teacher with non-finite embeddings of some tokens can still teach text without them."""
    table = embedding_matrix(model)
    tied = getattr(model.get_output_embeddings(), "weight", table) is table
    broken = [] if student or tied else _broken_rows(table.detach())
    excused = table if 0 < len(broken) < len(table) else None
    check_finite(((name, each) for name, each in model.named_parameters() if each is not excused), whose)
    if excused is not None:
        logger.warning(
            "abkd: %s has embeddings that are not finite for %d of its tokens, such as id %d: its predictions "
            "for text with one of them cannot be used",
            whose,
            len(broken),
            broken[0],
        )


def _broken_rows(table: torch.Tensor) -> list[int]:
    if is_finite(table):
        return []
    return (~table.isfinite()).any(-1).nonzero().flatten().tolist()


def _with_adapter(name: str, *, what: str, student: bool, **kwargs: Any) -> nn.Module:
    given = adapter_config(name, what)
    base = base_of(name, given, what)
    revision = {"revision": given.get("revision")} if given.get("revision") else {}
    options = {key: value for key, value in kwargs.items() if key != "revision"}
    model = load_causal_lm(base, what=f"{what} (base model of the adapter {name!r})", **revision, **options)
    adapted = read_adapter(model, name, base, what, trainable=student)
    check_finite(adapted.named_parameters(), f"{what}: {name!r}")
    return adapted
