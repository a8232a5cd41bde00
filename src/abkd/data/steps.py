"""Turn a row into its examples: one pure function that can be sent to another process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from abkd.data.bad_rows import BadRowError
from abkd.data.extra_columns import check_text_only, read_template_kwargs
from abkd.data.formats import Chat, Parser, PlainPair, PlainPrompt, PlainText, Record, context_of
from abkd.data.remarks import Remark
from abkd.data.rows import Row
from abkd.data.template import render
from abkd.data.tokenize import Form, TokenizedRow, tokenize
from abkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AS_TURNS = Remark(
    "prompt and completion are rendered as a user turn and an assistant turn of the chat template "
    "(apply_chat_template: false trains them as plain text)"
)
_AS_IS = Remark("the prompt already contains tokens of the chat template, so it is used as is")
_WITHOUT_SYSTEM = Remark("without a chat template, the system message and the history are not used", warning=True)
_WITHOUT_TEMPLATE = Remark(
    "no chat template is applied to the row, so its chat_template_kwargs are not used", warning=True
)


@dataclass(frozen=True)
class Steps:
    """Parse, render and tokenise a row. Calling it raises BadRowError for a row that cannot be used.

    ``apply_chat_template``: for plain prompts and completions; None decides row by row. ``context``: text that a
    ``privileged`` teacher reads first, None for the row's own.
    """

    parser: Parser
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    apply_chat_template: bool | None = None
    context: str | None = None
    privileged: bool = False
    columns: ClassVar[tuple[str, ...]] = ("input_ids", "trained", "teacher_input_ids", "teacher_trained")

    def __call__(self, row: Row) -> TokenizedRow:
        record, remark = self._record(row)
        context = context_of(row, self.context) if self.privileged else None
        made = tokenize(record, self.tokenizer, self.max_length, context=context)
        remarks = [] if remark is None else [remark]
        if not isinstance(record, Chat) and read_template_kwargs(row):
            remarks.append(_WITHOUT_TEMPLATE)
        return made._replace(remarks=(*remarks, *made.remarks), form=_form(record))

    def renders(self, rows: Iterable[Row]) -> bool:
        """Whether the first usable row becomes a conversation."""
        for row in rows:
            try:
                return isinstance(self._record(row)[0], Chat)
            except BadRowError:
                continue
        return False

    def _record(self, row: Row) -> tuple[Record, Remark | None]:
        """The parsed row, as turns if it is to be rendered, and a remark about that."""
        check_text_only(row)
        record = self.parser(row)
        if isinstance(record, Chat):
            _check_has_template(self.tokenizer)
            return record, None
        if isinstance(record, PlainText):
            if self.apply_chat_template:
                raise DataError("apply_chat_template needs columns prompt and completion, got text: set it to false")
            return record, None
        if self.apply_chat_template:
            _check_applicable(self.tokenizer)
            return record.as_chat(), None
        return self._decided(record)

    def _decided(self, record: PlainPair | PlainPrompt) -> tuple[Record, Remark | None]:
        if self.apply_chat_template is None and self.tokenizer.chat_template:
            if not _holds_template(record, self.tokenizer):
                return record.as_chat(), _AS_TURNS
            return record, _AS_IS
        return (replace(record, before=()), _WITHOUT_SYSTEM) if record.before else (record, None)


def _form(record: Record) -> Form:
    if isinstance(record, Chat):
        return "chat"
    return "text" if isinstance(record, PlainText) else "plain"


def _check_has_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "the data has conversations but the tokenizer has no chat template: "
            "set tokenizer.chat_template, or use plain strings for prompt and completion"
        )


def _check_applicable(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise ConfigError(
            "apply_chat_template is true but the tokenizer has no chat template: set it to null or false, or add a "
            "chat template to the tokenizer"
        )


def _holds_template(record: PlainPair | PlainPrompt, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a prompt is already rendered: it has a special token of the template, or starts or ends with its text."""
    opening, ending, specials = _marks(tokenizer, str(tokenizer.chat_template))
    prompt = record.prompt.strip()
    return (
        any(token in prompt for token in specials)
        or bool(opening and prompt.startswith(opening))
        or bool(ending and prompt.endswith(ending))
    )


@lru_cache(maxsize=8)
def _marks(tokenizer: Any, template: str) -> tuple[str, str, tuple[str, ...]]:
    """The text that the template writes before and after a question, and the added tokens in it.

    ``template`` is the tokenizer's own; it is a parameter because it can be changed on the same tokenizer.
    """
    try:
        text = render([{"role": "user", "content": "\N{SECTION SIGN}"}], {}, tokenizer, generation_prompt=True)
    except BadRowError:  # every row will report it
        return "", "", ()
    before, _, after = text.partition("\N{SECTION SIGN}")
    added = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    return before.strip(), after.strip(), tuple(token for token in sorted(added) if token in text)
