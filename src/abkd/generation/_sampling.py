"""Sampling parameters, and their combination with ``generation_kwargs``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from abkd.errors import ConfigError
from abkd.generation._draw import Warper
from abkd.schedules import is_number

CUTS = {"min_p": "MinPLogitsWarper", "typical_p": "TypicalLogitsWarper", "epsilon_cutoff": "EpsilonLogitsWarper"}
"""Further truncations of the distribution, in transformers' order, with their classes there."""

_SHAPES = {
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "length_penalty",
    "early_stopping",
    "remove_invalid_values",
    "renormalize_logits",
    "cache_implementation",
}
_ELSEWHERE = {
    **dict.fromkeys(("max_new_tokens", "max_length"), "use max_completion_length"),
    "num_return_sequences": "use num_generations",
}


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; by default, ancestral sampling from the full distribution.

    Args:
        temperature: of the softmax; 0 is greedy decoding.
        top_p: keep the smallest set of most probable tokens with at least this total probability; 1 keeps all.
        top_k: keep the k most probable tokens; 0 keeps all.
        num_beams: above 1, beam search: deterministic at temperature 0, with sampled continuations above it (the
            "beam-multinomial" text of f-DISTILL's scripts, which does not follow the model's distribution).

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be >= 0 (0 is greedy decoding), got {self.temperature!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"top_p must be above 0 and at most 1 (all tokens), got {self.top_p!r}")
        for name, least, meaning in (("top_k", 0, "0 keeps all tokens"), ("num_beams", 1, "1 is no beam search")):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be an integer >= {least} ({meaning}), got {value!r}")

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0


def settle(sampling: Sampling, generation_kwargs: Mapping[str, object] | None) -> tuple[Sampling, dict[str, object]]:
    """The effective sampling, and the other settings for ``GenerationConfig``; ``generation_kwargs`` take precedence.

    Raises:
        ConfigError: a setting that is not supported, or a value out of range.
    """
    rest = dict(generation_kwargs or {})
    known = {field.name for field in fields(Sampling)}
    own = {name: rest.pop(name) for name in known & rest.keys()}
    do_sample = rest.pop("do_sample", None)
    sampling = replace(sampling, **own)
    if do_sample is False:
        sampling = replace(sampling, temperature=0.0)
    if do_sample and not sampling.draws:
        raise ConfigError("generation_kwargs: do_sample=True needs a temperature above 0, got 0 (greedy decoding)")
    for name in rest:
        if name not in _SHAPES and name not in CUTS:
            raise ConfigError(f"generation_kwargs: {_unknown(name, known)}")
    _try(sampling, rest)
    return sampling, rest


def warpers(sampling: Sampling, rest: Mapping[str, object]) -> list[Warper]:
    """The processors applied to the scores before sampling: those of transformers, in its order."""
    from transformers.generation import logits_process as known

    made: list[Warper] = []
    if sampling.temperature != 1:
        made.append(known.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        made.append(known.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        made.append(known.TopPLogitsWarper(sampling.top_p))
    return made + [getattr(known, CUTS[name])(rest[name]) for name in CUTS if name in rest]


def _try(sampling: Sampling, rest: Mapping[str, object]) -> None:
    """Refuse values that transformers refuses, before a model is loaded."""
    if not rest:
        return
    from transformers import GenerationConfig

    try:
        GenerationConfig(**rest)
        if sampling.draws:
            warpers(sampling, rest)
        _processors(rest)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generation_kwargs: {error}") from error


def _processors(rest: Mapping[str, Any]) -> None:
    """Construct the processors of transformers that check their value in the constructor."""
    from transformers.generation import logits_process as known

    if "repetition_penalty" in rest:
        known.RepetitionPenaltyLogitsProcessor(penalty=rest["repetition_penalty"])
    if rest.get("no_repeat_ngram_size"):
        known.NoRepeatNGramLogitsProcessor(rest["no_repeat_ngram_size"])
    if rest.get("bad_words_ids"):
        known.NoBadWordsLogitsProcessor(rest["bad_words_ids"], eos_token_id=None)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if not all(isinstance(token, int) for token in rest.get(name) or ()):
            raise TypeError(f"{name} must be a list of token ids, got {rest[name]!r}")
    if not is_number(rest.get("length_penalty") or 1.0):
        raise TypeError(f"length_penalty must be a number, got {rest['length_penalty']!r}")


def _unknown(name: str, known: set[str]) -> str:
    if name in _ELSEWHERE:
        return f"{name} is not supported; {_ELSEWHERE[name]}"
    return f"{name!r} is not supported, use one of: {', '.join(sorted({*known, 'do_sample', *_SHAPES, *CUTS}))}"
