"""Tokenised rows for the eye: what the model reads, what of it is trained, and what max_length has cut."""

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

_SHOWN = 240  # characters of a run of tokens, trained or not, at the start of a run
_RUNS = 6


def describe_sample(example: Example, tokenizer: Any) -> Text:
    """The row's text, trained tokens green and between ⟦ ⟧ (for terminals without colour), and a line of counts."""
    from rich.text import Text

    text = Text()
    for trained, shown in _runs(example, tokenizer):
        text.append(f"⟦{shown}⟧" if trained else shown, style="bold green" if trained else "dim")
    text.append(f"\n{len(example['input_ids'])} tokens, {sum(example['trained'])} trained (⟦ ⟧, green)", style="italic")
    more = len(example.get("teacher_input_ids", example["input_ids"])) - len(example["input_ids"])
    text.append(f"; the teacher reads {more} more before them" if more else "", style="italic")
    return text


def describe_start(
    dataset: TokenizedDataset | StreamedDataset, tokenizer: Any, max_length: int
) -> Iterator[tuple[str, bool]]:
    """Lines about rows before they are trained on (the first row, and cut ones), each with whether it is a warning."""
    example = _first_row(dataset)
    runs = [(trained, _short(shown)) for trained, shown in _runs(example, tokenizer)]
    text = "".join(f"⟦{shown}⟧" if trained else shown for trained, shown in runs[:_RUNS])
    more = " …" if len(runs) > _RUNS else ""
    what = "as it is trained, ⟦trained tokens⟧" if any(example["trained"]) else "a prompt that a model completes"
    yield f"abkd: the first row, {what}:\n{text}{more}", False
    account = dataset.account
    rows = f"the first {account.rows:,}" if isinstance(dataset, StreamedDataset) else f"{account.rows:,}"
    if account.truncated:
        share = 100 * account.cut_tokens / max(account.cut_tokens + dataset.trained_tokens, 1)
        cut = (
            f"abkd: max_length {max_length} cuts {account.truncated:,} of {rows} rows, and with their ends "
            f"{share:.2g} % of the tokens that are to be learnt; raise max_length if memory allows"
        )
        yield cut, True


def _runs(example: Example, tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """The text of neighbouring tokens that are trained, or are not."""
    pairs = zip(example["trained"], example["input_ids"], strict=True)
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
        yield trained, tokenizer.decode([token for _, token in run], skip_special_tokens=False)


def _first_row(dataset: TokenizedDataset | StreamedDataset) -> Example:
    """The first row, also of several that are packed."""
    example = dataset[0]
    size = example.get("segments", []).count(0) or len(example["input_ids"])
    return Example(input_ids=example["input_ids"][:size], trained=example["trained"][:size])


def _short(text: str) -> str:
    """Both ends of a long text; what would move a terminal's cursor is spelt out."""
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) == "Cc" and each not in "\n\t" else each for each in shown
    )
