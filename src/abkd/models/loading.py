"""Loading of language models and tokenizers by name or directory; each failure is one sentence with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from abkd.data.vocabulary import check_deterministic
from abkd.errors import ConfigError
from abkd.models.adapters import adapter_config, base_of, read_adapter
from abkd.models.finite import is_finite
from abkd.models.folders import check_model_folder, is_adapter, missing_folder, stored_tensors
from abkd.models.positions import text_config
from abkd.models.remarks import logger, some
from abkd.storage import in_full

# Tensors that a checkpoint may hold in addition to the language model: computed buffers, value heads, multi-token
# prediction heads, the vision and audio towers of multimodal models.
_IGNORED = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$|position_ids$|(^|\.)(mtp|v_head|vision_tower|vision_model|visual"
    r"|audio_tower|multi_modal_projector|embed_vision|embed_audio)\."
)
_OTHER_FILES = {"gguf_file", "subfolder", "variant"}  # options that choose among several models in a directory
_VOCABULARIES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "spiece*", "*.gguf")
_LONGEST = 300  # characters of another library's message


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
    if not _OTHER_FILES & kwargs.keys():
        check_model_folder(name_or_path, what)
    if is_adapter(name_or_path):
        return _with_adapter(name_or_path, what=what, student=student, **kwargs)
    from transformers import AutoModelForCausalLM

    kwargs = {"trust_remote_code": False, **kwargs}
    config = _config(name_or_path, what, kwargs)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    except Exception as error:  # from many libraries; each means that the model cannot be loaded
        raise ConfigError(_why_not(error, name_or_path, what, config)) from error
    model, report = loaded
    _judge_weights(model, report, name_or_path, what, student=student)
    _check_weights(model, f"{what}: {name_or_path!r}", student=student)
    _untie(model, name_or_path, what)
    return model


def _untie(model: Any, name: str, what: str) -> None:
    """Correct ``tie_word_embeddings``: transformers does not tie a head that the file stores with other values."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    configs = [each for each in (model.config, text_config(model)) if getattr(each, "tie_word_embeddings", False)]
    if head is None or not configs or head is model.get_input_embeddings().weight:
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


def teacher_options(given: Any, device: torch.device, revision: str | None = None) -> dict[str, Any]:
    """Options to load a teacher with: bf16 on a GPU; ``teacher_model_init_kwargs`` take precedence."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"dtype": dtype, **(with_dtype(given) or {}), **({"revision": revision} if revision else {})}


def with_dtype(options: Any, what: str = "the options") -> Any:
    """Options for ``from_pretrained`` with ``torch_dtype``, the older name, renamed to ``dtype``.

    Raises:
        ConfigError: both are given.
    """
    if not isinstance(options, Mapping) or "torch_dtype" not in options:
        return options
    if "dtype" in options:
        raise ConfigError(f"{what}: got both dtype and torch_dtype, which are the same: keep dtype")
    return {("dtype" if name == "torch_dtype" else name): value for name, value in options.items()}


def placed(model: Any, device: torch.device) -> Any:
    """``model`` moved to ``device``; a quantised one stays where it was loaded."""
    return model.to(device) if getattr(model, "quantization_method", None) is None else model


def load_tokenizer(name_or_path: str, *, what: str, **kwargs: Any) -> Any:
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
            _config(name_or_path, what, kwargs)
        raise ConfigError(
            f"{what}: cannot load a tokenizer from {name_or_path!r} ({in_short(error)}); {_TOKENIZER_WAY_OUT}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ConfigError(f"{what}: the tokenizer in {name_or_path!r} has no vocabulary, {_TOKENIZER_WAY_OUT}")
    check_deterministic(tokenizer, what)
    return tokenizer


_TOKENIZER_WAY_OUT = "download or save it again (tokenizer.save_pretrained), with all of its files"


def _check_weights(model: Any, whose: str, *, student: bool) -> None:
    """:func:`check_finite`; a teacher with non-finite embeddings of some tokens can still teach text without them."""
    table = model.get_input_embeddings().weight
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


def check_finite(weights: Iterable[tuple[str, torch.Tensor]], whose: str) -> None:
    """Raise ConfigError if a weight is NaN or infinite, with its name; ``whose`` starts the message."""
    for name, weight in weights:
        if weight.dtype.itemsize > 1 and not is_finite(weight):
            raise ConfigError(
                f"{whose} has values that are not finite (NaN or infinity) in {name}: it was damaged, or its training "
                "diverged; use an earlier checkpoint, or download it again"
            )


def in_short(error: BaseException) -> str:
    """Another library's error message in one line, with the type of the error where the message alone is unclear."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return text if isinstance(error, OSError | ValueError | ImportError) and text else f"{type(error).__name__}: {text}"


def _with_adapter(name: str, *, what: str, student: bool, **kwargs: Any) -> Any:
    given = adapter_config(name, what)
    base = base_of(name, given, what)
    revision = {"revision": given.get("revision")} if given.get("revision") else {}
    options = {key: value for key, value in kwargs.items() if key != "revision"}
    model = load_causal_lm(base, what=f"{what} (base model of the adapter {name!r})", **revision, **options)
    adapted = read_adapter(model, name, base, what, trainable=student)
    check_finite(adapted.named_parameters(), f"{what}: {name!r}")
    return adapted


def _config(name: str, what: str, kwargs: Mapping[str, Any]) -> Any:
    """The configuration of a causal language model.

    Raises:
        ConfigError: it cannot be read, or is that of an encoder-decoder.
    """
    from transformers import AutoConfig

    hub = {key: kwargs[key] for key in _FOR_CONFIG if key in kwargs}
    try:
        config = kwargs.get("config") or AutoConfig.from_pretrained(name, **hub)
    except Exception as error:  # as above
        if Path(name, "config.json").is_file() and "trust_remote_code" not in str(error):
            error = ValueError(f"its config.json cannot be read ({in_short(error)}); fix it, or download it again")
        raise ConfigError(_why_not(error, name, what, None)) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{what}: expected a causal (decoder-only) language model, got {name!r}, an encoder-decoder model "
            f"({config.model_type}); choose a decoder-only model"
        )
    return config


_FOR_CONFIG = ("cache_dir", "gguf_file", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def _why_not(error: Exception, name: str, what: str, config: Any) -> str:
    """The reason behind an error while loading."""
    text = str(error)
    if "trust_remote_code" in text:
        reason = (
            "it needs code that is shipped with the model, which abkd does not run; if you trust that code, load the "
            "model yourself and pass it to DistillTrainer"
        )
    elif ("ignore_mismatched_sizes" in text or "size mismatch" in text) and config is not None:
        reason = f"{_reshaped(name, config)}: config.json and the weights belong to different models; download it again"
    elif isinstance(error, UnpicklingError):
        reason = "its .bin file holds more than tensors, and would run code; use a model in safetensors"
    else:
        reason = in_short(error)
        if not isinstance(error, OSError | ValueError | ImportError):
            reason += "; fix its config.json, or download it again"
    return f"{what}: cannot load a causal language model from {name!r}: {reason}"


def _reshaped(name: str, config: Any) -> str:
    """The first tensor whose shape differs from the one in the configuration."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config, trust_remote_code=False).state_dict()
    for key, tensor in stored_tensors(name).items():
        if key in expected and tensor.shape != tuple(expected[key].shape):
            return f"{key} should have shape {list(expected[key].shape)}, got {list(tensor.shape)}"
    return "some weights do not have the shapes of config.json"


def _judge_weights(model: nn.Module, report: Mapping[str, Any], name: str, what: str, *, student: bool) -> None:
    """Refuse missing and unused weights, or for a student warn about them."""
    reshaped = {key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys", ())}
    new = sorted({*report.get("missing_keys", ()), *reshaped})
    extra = sorted(key for key in report.get("unexpected_keys", ()) if not _IGNORED.search(key))
    if report.get("error_msgs"):
        raise ConfigError(f"{what}: cannot load {name!r}: {' '.join(report['error_msgs'])[:_LONGEST]}")
    kind = type(model).__name__
    if not student and new:
        raise ConfigError(
            f"{what}: {name!r} has no weights for {some(new)}, which would be random: it is not a trained {kind}; "
            "choose one that is, or download it again"
        )
    if not student and extra:
        raise ConfigError(
            f"{what}: {name!r} has weights that do not match its config.json, such as {some(extra)}: as a {kind} it "
            "would not compute what it was trained to; fix its config.json, or download it again"
        )
    if new:
        logger.warning("abkd: %s: %r has no weights for %s; they are initialised randomly", what, name, some(new))
    if extra:
        logger.warning("abkd: %s: %r has weights that a %s does not use: %s", what, name, kind, some(extra))
