"""Answers that a model writes, and how near they are to references: generation in batches, and ROUGE-L."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from abkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    """What ``model`` answers to each prompt, in the order of the prompts, without special tokens.

    Sampling is the papers' protocol: temperature 1, from the whole distribution (no top-k, no top-p). The same seed
    gives the same answers on the same machine with the same batch size, and the caller's random state stays as it was.

    Args:
        model: a causal language model; its mode is restored afterwards.
        tokenizer: decodes the answers, and tells the end and padding tokens where the model does not.
        prompts: token ids, ready for the model: chat template and generation prompt included.
        max_new_tokens: an answer is cut after this many tokens.
        do_sample: draw from the distribution instead of taking the likeliest token.
        seed: of the drawing; not used when decoding greedily.
        batch_size: prompts generated together; prompts of similar length share a batch.
        progress: called with (prompts done, prompts in all) after every batch.

    Raises:
        DataError: a prompt without any token.
        ConfigError: ``max_new_tokens`` or ``batch_size`` is below 1.
    """
    _check(prompts, max_new_tokens, batch_size)
    settings = _settings(model, tokenizer, max_new_tokens, do_sample)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    with _generating(model, seed):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, answer in zip(chosen, _batch(model, tokenizer, [prompts[i] for i in chosen], settings), strict=True):
                answers[i] = answer
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order))
    return answers


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """ROUGE-L F1 times 100, a mean over the predictions: longest common subsequence of stemmed words (Lin, 2004).

    As in the distillation papers: Porter stemmer on, and the best of the references where an item has several.

    Raises:
        DataError: none, or not as many references as predictions, or an item without a reference.
    """
    if not predictions or len(predictions) != len(references):
        raise DataError(
            "ROUGE-L needs one reference (or list of references) for each prediction, and at least one prediction; "
            f"there are {len(predictions)} predictions and {len(references)} references."
        )
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    total = 0.0
    for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        choices = [reference] if isinstance(reference, str) else list(reference)
        if not choices:
            raise DataError(f"Prediction {number} has no reference to be compared with.")
        total += max(scorer.score(choice, prediction)["rougeL"].fmeasure for choice in choices)
    return 100 * total / len(predictions)


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(
            f"max_new_tokens and batch_size must be at least 1, but are {max_new_tokens} and {batch_size}."
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"Prompt {number} has no token; a model needs at least one to begin from.")


def _settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, do_sample: bool
) -> GenerationConfig:
    """Settings from scratch: the model's own may hold a top-k, a penalty or a length that falsifies a comparison."""
    from transformers import GenerationConfig

    own = model.generation_config
    end = own.eos_token_id if own is not None and own.eos_token_id is not None else tokenizer.eos_token_id
    padding = tokenizer.pad_token_id
    if padding is None:
        padding = (end[0] if isinstance(end, list) else end) if end is not None else 0
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {"do_sample": False}
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=padding, **sampling)


@contextlib.contextmanager
def _generating(model: PreTrainedModel, seed: int) -> Iterator[None]:
    training = model.training
    own = model.generation_config
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            model.eval()
            yield
    finally:
        model.generation_config = own
        model.train(training)


def _batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Sequence[int]],
    settings: GenerationConfig,
) -> list[str]:
    longest = max(map(len, prompts))
    padding = settings.pad_token_id
    ids = torch.tensor([[*[padding] * (longest - len(prompt)), *prompt] for prompt in prompts], device=model.device)
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=model.device)
    mask = (torch.arange(longest, device=model.device) >= longest - lengths).long()
    # generate() counts positions from the mask, so padding on the left changes no answer
    model.generation_config = settings
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return [answer.strip() for answer in tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)]
