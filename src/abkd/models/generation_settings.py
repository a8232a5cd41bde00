"""Repair of a model's generation config that transformers loads but would refuse to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkd.models.parts import without_peft
from abkd.models.remarks import logger

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def mend_generation_config(model: PreTrainedModel, whose: str) -> None:
    """Drop from ``generation_config.json`` what cannot be saved again: a run would fail at its first checkpoint.

    Sampling settings are dropped if nothing is sampled (they have no effect then); if that is not enough, everything
    but the special token ids is dropped. A warning lists what is dropped. With adapters, the config is that of the base
    model, which they may be merged into.
    """
    model = without_peft(model)
    found: GenerationConfig | None = getattr(model, "generation_config", None)
    if found is None or (why := _fault(found)) is None:
        return
    from transformers import GenerationConfig

    given = found.to_diff_dict()
    milder = {name: value for name, value in given.items() if name not in _OF_SAMPLING}
    ids = {name: value for name, value in given.items() if name.endswith("_token_id")}
    for kept in (milder, ids):
        mended = GenerationConfig(**kept)
        if _fault(mended) is None:
            break
    logger.warning(
        "abkd: generation_config.json of %s is not valid (%s); the student is saved without its %s",
        whose,
        why,
        ", ".join(sorted(given.keys() - kept.keys())),
    )
    model.generation_config = mended


def _fault(config: GenerationConfig) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return next(iter(str(error).strip().splitlines()), "no reason given").strip().rstrip(".:")
    return None
