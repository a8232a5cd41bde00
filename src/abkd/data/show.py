"""One tokenised row for the eye: what the model reads, and what of it is trained."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from abkd.data.tokenize import Example

if TYPE_CHECKING:
    from rich.text import Text


def describe_sample(example: Example, tokenizer: Any) -> Text:
    """The row's text, trained tokens green and between ⟦ ⟧ (for terminals without colour), and a line of counts."""
    from rich.text import Text

    text = Text()
    pairs = zip(example["trained"], example["input_ids"], strict=True)
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
        shown = tokenizer.decode([token for _, token in run], skip_special_tokens=False)
        text.append(f"⟦{shown}⟧" if trained else shown, style="bold green" if trained else "dim")
    text.append(f"\n{len(example['input_ids'])} tokens, {sum(example['trained'])} trained (⟦ ⟧, green)", style="italic")
    more = len(example.get("teacher_input_ids", example["input_ids"])) - len(example["input_ids"])
    text.append(f"; the teacher reads {more} more before them" if more else "", style="italic")
    return text
