"""Display tokenised rows: the text that the model reads, its trained tokens, and what max_length truncates."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from abkd.data.dataset import TokenizedDataset
from abkd.data.stream import StreamedDataset
from abkd.data.tokenize import Example

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

_SHOWN = 240  # characters shown of each group of consecutive tokens that are all trained, or all not
_GROUPS = 6


def describe_sample(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The row's text, with trained tokens in green and between ⟦ ⟧ (for terminals without colour), and its counts."""
    from rich.text import Text

    text = Text()
    for trained, shown in _grouped(example, tokenizer):
        text.append(f"⟦{shown}⟧" if trained else shown, style="bold green" if trained else "dim")
    text.append(f"\n{len(example['input_ids'])} tokens, {sum(example['trained'])} trained (⟦ ⟧, green)", style="italic")
    more = len(example.get("teacher_input_ids", example["input_ids"])) - len(example["input_ids"])
    text.append(f"; the teacher reads {more} more tokens before them" if more else "", style="italic")
    return text


def describe_start(
    dataset: TokenizedDataset | StreamedDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[tuple[str, bool]]:
    """Messages about the rows before training (the first row, truncation), each with whether it is a warning."""
    example = _first_row(dataset)
    groups = [(trained, _short(shown)) for trained, shown in _grouped(example, tokenizer)]
    text = "".join(f"⟦{shown}⟧" if trained else shown for trained, shown in groups[:_GROUPS])
    more = " …" if len(groups) > _GROUPS else ""
    what = "with ⟦trained tokens⟧ marked" if any(example["trained"]) else "a prompt that a model completes"
    yield f"abkd: the first row, {what}:\n{text}{more}", False
    account = dataset.account
    rows = f"the first {account.rows:,}" if isinstance(dataset, StreamedDataset) else f"{account.rows:,}"
    if account.truncated:
        share = 100 * account.cut_tokens / max(account.cut_tokens + dataset.trained_tokens, 1)
        cut = (
            f"abkd: max_length {max_length} truncates {account.truncated:,} of {rows} rows, which removes "
            f"{share:.2g} % of the trained tokens; raise max_length if memory allows"
        )
        yield cut, True


def _grouped(example: Example, tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """The text of each group of consecutive tokens that are all trained, or all not."""
    pairs = zip(example["trained"], example["input_ids"], strict=True)
    for trained, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        yield trained, tokenizer.decode([token for _, token in group], skip_special_tokens=False)


def _first_row(dataset: TokenizedDataset | StreamedDataset) -> Example:
    """The first row, even if several are packed."""
    example = dataset[0]
    size = example.get("segments", []).count(0) or len(example["input_ids"])
    return Example(input_ids=example["input_ids"][:size], trained=example["trained"][:size])


def _short(text: str) -> str:
    """Both ends of a long text, with control characters escaped."""
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) == "Cc" and each not in "\n\t" else each for each in shown
    )
