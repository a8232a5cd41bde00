"""Depth pruning: a student from its teacher, without the layers that change the hidden states least.

The influence of a layer is 1 - cos(its input, its output), averaged over tokens: the "block influence" of Men et al.,
*ShortGPT* (2024). Hidden size, head and vocabulary stay the same, so teacher and student match exactly.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError
from abkd.models.parts import embedding_matrix

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOKENS = 8  # in the input that the kept layers are compared on


@torch.no_grad()
def layer_influence(
    model: PreTrainedModel,
    examples: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], object] | None = None,
) -> list[float]:
    """One number per decoder layer, 1 - cosine of its input and output, averaged over all tokens of ``examples``.

    Args:
        model: a causal language model; its mode and its weights stay unchanged.
        examples: token ids, one list per text. A few hundred short texts like those the student is for are enough.
        batch_size: texts per forward pass.
        progress: called with (texts done, total texts).

    Raises:
        ConfigError: the examples hold no token, or the decoder layers cannot be found.
    """
    examples = sorted((example for example in examples if len(example)), key=len)
    if not examples:
        raise ConfigError("Layers are measured on text, but the examples have no tokens; give at least one row.")
    layers = decoder_layers(model)[1]
    sums = [0.0] * len(layers)
    mask = torch.empty(0)

    def watch(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: object) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            cosine = torch.cosine_similarity(before.float(), _hidden(output).float(), dim=-1)
            sums[index] += ((1 - cosine) * mask).sum().item()

        return hook

    hooks = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    training = model.training
    model.eval()
    try:
        for start in range(0, len(examples), batch_size):
            ids, mask = _padded(examples[start : start + batch_size], model.device)
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            if progress is not None:
                progress(min(start + batch_size, len(examples)), len(examples))
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    return [total / sum(map(len, examples)) for total in sums]


def shrink(model: PreTrainedModel, layers: int, influence: Sequence[float]) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """A copy of ``model`` with its ``layers`` most influential layers, and their indices in the original.

    Every other weight is kept; ``model`` itself is unchanged. The copy has its own configuration, so it saves, loads
    and generates like any model of its architecture.

    Raises:
        ConfigError: ``layers`` is not in [1, existing layers), ``influence`` is not one finite number per layer, or
            layers depend on their index in a way that the configuration cannot express (DiffLlama).
    """
    name, existing = decoder_layers(model)
    if not 1 <= layers < len(existing):
        raise ConfigError(
            f"layers must be 1 to {len(existing) - 1} (fewer than this model's {len(existing)}), got {layers}."
        )
    if len(influence) != len(existing) or not torch.tensor(influence, dtype=torch.float64).isfinite().all():
        raise ConfigError(
            f"influence must be one finite number for each of the {len(existing)} layers, got {list(influence)!r}; "
            "use layer_influence(model, examples)."
        )
    ranked = sorted(range(len(existing)), key=lambda i: -influence[i])
    kept = tuple(sorted(ranked[:layers]))
    student = _build(model, _shorter_config(model, kept))
    _copy_weights(model, student, name, kept)
    _check_layers(model, student, kept)
    return student, kept


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder's layers and their name in ``model``: the only ``ModuleList`` of ``num_hidden_layers`` modules.

    Raises:
        ConfigError: there is none, or more than one.
    """
    count = _text_config(model.config).num_hidden_layers
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise ConfigError(
            f"Expected exactly one list of {count} decoder layers in {type(model).__name__}, got: {names}. "
            "Shrinking needs a plain decoder-only model."
        )
    return found[0]


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    return config.get_text_config(decoder=True)


def _padded(examples: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids ``[B, T]`` padded on the right with 0, and the mask of the real ones."""
    longest = max(map(len, examples))
    ids = torch.tensor([[*example, *[0] * (longest - len(example))] for example in examples], device=device)
    mask = torch.arange(longest, device=device) < torch.tensor([[len(example)] for example in examples], device=device)
    return ids, mask.long()


def _shorter_config(model: PreTrainedModel, kept: Sequence[int]) -> PretrainedConfig:
    """A copy of the configuration for the kept layers; lists with one entry per layer (``layer_types``) are cut too."""
    shorter = copy.deepcopy(model.config)
    text = _text_config(shorter)
    count = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(text, key, [value[i] for i in kept])
    text.num_hidden_layers = len(kept)
    return shorter


def _build(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    student: Any = type(model)._from_config(config, dtype=model.dtype)  # the only constructor that takes a dtype
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).train(model.training)


def _copy_weights(model: PreTrainedModel, student: PreTrainedModel, name: str, kept: Sequence[int]) -> None:
    of_layer = re.compile(rf"{re.escape(name)}\.(\d+)\.(.*)")
    place = {number: i for i, number in enumerate(kept)}
    weights = {}
    for key, tensor in model.state_dict().items():
        found = of_layer.fullmatch(key)
        if found is None:
            weights[key] = tensor
        elif int(found[1]) in place:
            weights[f"{name}.{place[int(found[1])]}.{found[2]}"] = tensor
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(model).__name__} builds its layers differently by their index, so layers {list(kept)} do not "
            "fit a shorter model; choose another teacher or another number of layers."
        ) from error


@torch.no_grad()
def _check_layers(model: PreTrainedModel, student: PreTrainedModel, kept: Sequence[int]) -> None:
    """Raise ConfigError if a layer gives another output for the same input under its new index."""
    before, after = decoder_layers(model)[1], decoder_layers(student)[1]
    calls: dict[int, tuple[tuple[object, ...], dict[str, object], object]] = {}

    def watch(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            calls[number] = args, kwargs, output

        return hook

    hooks = [before[number].register_forward_hook(watch(number), with_kwargs=True) for number in kept]
    training = model.training, student.training
    for each in (model, student):
        each.eval()
    try:
        ids = torch.arange(1, 1 + _TOKENS, device=model.device) % len(embedding_matrix(model))
        model.base_model(input_ids=ids[None], use_cache=False)
        for place, number in enumerate(kept):
            args, kwargs, expected = calls[number]
            found, expected = _hidden(after[place](*args, **kwargs)), _hidden(expected)
            if not torch.allclose(found, expected, rtol=1e-3, atol=float(1e-3 * expected.abs().max())):
                raise ConfigError(
                    f"{type(model).__name__} computes its layers differently by their index: layer {number} gives "
                    f"another output as layer {place}; choose another teacher."
                )
    finally:
        model.train(training[0])
        student.train(training[1])
        for handle in hooks:
            handle.remove()


def _hidden(output: Any) -> Tensor:
    """The hidden states in a layer's output, which is a list in openai-gpt."""
    return output[0] if isinstance(output, tuple | list) else output
