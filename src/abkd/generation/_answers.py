"""Answers as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from abkd.generation._sampling import Sampling
from abkd.generation._write import write_completions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    do_sample: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int, int], object] | None = None,
) -> list[str]:
    """Generate the answer of ``model`` to each prompt, in the order of the prompts, without special tokens.

    Sampling follows the papers' protocol: temperature 1, from the full distribution (no top-k, no top-p). The same seed
    gives the same answers on the same machine, and the caller's RNG state is unchanged.

    Args:
        model: a causal language model; its mode is restored afterwards.
        tokenizer: decodes the answers, and provides the EOS and padding tokens if the model does not.
        prompts: token ids, ready for the model: chat template and generation prompt included.
        max_new_tokens: an answer is truncated to this many tokens.
        do_sample: sample from the distribution instead of decoding greedily.
        seed: the seed of the sampling; not used in greedy decoding.
        batch_size: prompts per batch; prompts of similar length share a batch.
        progress: called with (prompts done, total prompts) after every batch.

    Raises:
        DataError: an empty prompt.
        ConfigError: ``max_new_tokens`` or ``batch_size`` is below 1.
    """
    written = write_completions(
        model,
        tokenizer,
        prompts,
        Sampling(temperature=1.0 if do_sample else 0.0),
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return [str(tokenizer.decode(completion.ids, skip_special_tokens=True)).strip() for completion in written]
