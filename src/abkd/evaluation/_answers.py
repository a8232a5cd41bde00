"""Answers to held-out prompts against references: ROUGE-L, and the generation speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from abkd.errors import DataError
from abkd.generation import generate_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answer_metrics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    references: Sequence[str | Sequence[str]],
    *,
    max_new_tokens: int = 128,
    seeds: Sequence[int] = (),
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[str], dict[str, float]]:
    """A model's greedy answers to prompts, and the metrics of its answers.

    Args:
        model, tokenizer, prompts, max_new_tokens, progress: as in :func:`abkd.generation.generate_answers`.
        references: the correct answer, or several, of each prompt.
        seeds: sampled answers are drawn once with each.

    Returns:
        The greedy answers, and the metrics ``rouge_l_greedy``, ``tokens_per_second`` (of greedy decoding) and, with
        seeds, ``rouge_l_sampled``: the mean over them, ``rouge_l_sampled_std`` their standard deviation (n - 1).

    Raises:
        DataError: no prompts, an empty one, or another number of references than prompts.
    """
    began = time.monotonic()
    greedy = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, progress=progress)
    seconds = time.monotonic() - began
    written = sum(len(tokenizer(answer)["input_ids"]) + 1 for answer in greedy)
    found = {"rouge_l_greedy": rouge_l(greedy, references), "tokens_per_second": written / seconds}
    scores: list[float] = []
    for seed in seeds:
        sampled = generate_answers(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, do_sample=True, seed=seed, progress=progress
        )
        scores.append(rouge_l(sampled, references))
    if scores:
        found["rouge_l_sampled"] = statistics.mean(scores)
    if len(scores) > 1:
        found["rouge_l_sampled_std"] = statistics.stdev(scores)
    return greedy, found


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """ROUGE-L F1 times 100, averaged over the predictions: longest common subsequence of stemmed words (Lin, 2004).

    As in the distillation papers: with the Porter stemmer, and the best score if an item has several references.

    Raises:
        DataError: no predictions, another number of references than predictions, or an item without a reference.
    """
    if not predictions or len(predictions) != len(references):
        raise DataError(
            "ROUGE-L needs at least one prediction, and one reference (or list of references) for each, got "
            f"{len(predictions)} predictions and {len(references)} references."
        )
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    total = 0.0
    for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        choices = [reference] if isinstance(reference, str) else list(reference)
        if not choices:
            raise DataError(f"Prediction {number} has no reference.")
        total += max(scorer.score(choice, prediction)["rougeL"].fmeasure for choice in choices)
    return 100 * total / len(predictions)
