"""How a model chooses its tokens: a value, and what ``generation_kwargs`` make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from abkd.errors import ConfigError
from abkd.schedules import is_number

CUTS = {"min_p": "MinPLogitsWarper", "typical_p": "TypicalLogitsWarper", "epsilon_cutoff": "EpsilonLogitsWarper"}
"""What else may cut the distribution before a token is drawn, in transformers' order, and its class there."""

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
    **dict.fromkeys(("max_new_tokens", "max_length"), "the length is max_completion_length"),
    "num_return_sequences": "several completions of a prompt are num_generations",
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; as it stands, ancestral sampling from the whole distribution.

    Args:
        temperature: of the softmax; 0 takes the likeliest token.
        top_p: keep the likeliest tokens that hold this mass together; 1 keeps all.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        num_beams: above 1, beam search: deterministic at temperature 0, with sampled continuations above it (the
            "beam-multinomial" text of f-DISTILL's scripts, which is not distributed as the model says).

    Raises:
        ConfigError: a value out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be 0 (the likeliest token) or more, but it is {self.temperature!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"top_p must lie above 0 and at most at 1 (all tokens), but it is {self.top_p!r}")
        for name, least, meaning in (("top_k", 0, "0 keeps all tokens"), ("num_beams", 1, "1 is no beam search")):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least} ({meaning}), but it is {value!r}")

    @property
    def draws(self) -> bool:
        """Whether chance takes part."""
        return self.temperature > 0


def settle(sampling: Sampling, generation_kwargs: Mapping[str, Any] | None) -> tuple[Sampling, dict[str, Any]]:
    """The sampling that counts, and the other settings for ``GenerationConfig``: ``generation_kwargs`` win.

    Raises:
        ConfigError: a name that has no meaning here, or a value out of its range.
    """
    rest = dict(generation_kwargs or {})
    known = {field.name for field in fields(Sampling)}
    own = {name: rest.pop(name) for name in known & rest.keys()}
    do_sample = rest.pop("do_sample", None)
    sampling = replace(sampling, **own)
    if do_sample is False:
        sampling = replace(sampling, temperature=0.0)
    if do_sample and not sampling.draws:
        raise ConfigError("generation_kwargs: do_sample is true and the temperature 0, which takes the likeliest token")
    for name in rest:
        if name not in _SHAPES and name not in CUTS:
            raise ConfigError(f"generation_kwargs: {_unknown(name, known)}")
    _try(sampling, rest)
    return sampling, rest


def warpers(sampling: Sampling, rest: Mapping[str, Any]) -> list[Any]:
    """What is done to the scores before a token is drawn: the processors of transformers, in its order."""
    from transformers.generation import logits_process as known

    made: list[Any] = []
    if sampling.temperature != 1:
        made.append(known.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        made.append(known.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        made.append(known.TopPLogitsWarper(sampling.top_p))
    return made + [getattr(known, CUTS[name])(rest[name]) for name in CUTS if name in rest]


def _try(sampling: Sampling, rest: Mapping[str, Any]) -> None:
    """Values that transformers refuses are refused now, before a model is loaded."""
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
    """Make those of transformers that look at their value when they are made."""
    from transformers.generation import logits_process as known

    if "repetition_penalty" in rest:
        known.RepetitionPenaltyLogitsProcessor(penalty=rest["repetition_penalty"])
    if rest.get("no_repeat_ngram_size"):
        known.NoRepeatNGramLogitsProcessor(rest["no_repeat_ngram_size"])
    if rest.get("bad_words_ids"):
        known.NoBadWordsLogitsProcessor(rest["bad_words_ids"], eos_token_id=None)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if not all(isinstance(token, int) for token in rest.get(name) or ()):
            raise TypeError(f"{name} must be a list of token ids, but is {rest[name]!r}")
    if not is_number(rest.get("length_penalty") or 1.0):
        raise TypeError(f"length_penalty must be a number, but is {rest['length_penalty']!r}")


def _unknown(name: str, known: set[str]) -> str:
    if name in _ELSEWHERE:
        return f"{name} has no meaning here; {_ELSEWHERE[name]}"
    return f"{name!r} is not known here. There are: {', '.join(sorted({*known, 'do_sample', *_SHAPES, *CUTS}))}"
