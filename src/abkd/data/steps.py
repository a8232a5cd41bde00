"""From a row to its examples: one pure function that can be sent to another process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from abkd.data.bad_rows import BadRowError
from abkd.data.beside import check_text_only, read_template_kwargs
from abkd.data.formats import Chat, Parser, PlainPair, PlainPrompt, PlainText, Record, context_of
from abkd.data.remarks import Remark
from abkd.data.rows import Row
from abkd.data.template import render
from abkd.data.tokenize import Form, TokenizedRow, tokenize
from abkd.errors import ConfigError, DataError

_AS_TURNS = Remark(
    "prompt and completion become a user's and an assistant's turn of the chat template (apply_chat_template: false "
    "trains them as plain text)"
)
_AS_IT_IS = Remark("the prompt holds tokens of the chat template already, so it is used as it is")
_WITHOUT_SYSTEM = Remark("without a chat template the system message and the history are not used", warning=True)
_WITHOUT_TEMPLATE = Remark(
    "no chat template is applied to the row, so its chat_template_kwargs are not used", warning=True
)


@dataclass(frozen=True)
class Steps:
    """Parse, render, tokenise. Calling it raises BadRowError for a row that cannot be used.

    ``apply_chat_template``: of plain prompts and completions; None decides row by row. ``context``: what a
    ``privileged`` teacher reads first, None for the row's own.
    """

    parser: Parser
    tokenizer: Any
    max_length: int
    apply_chat_template: bool | None = None
    context: str | None = None
    privileged: bool = False

    def __call__(self, row: Row) -> TokenizedRow:
        record, remark = self._record(row)
        context = context_of(row, self.context) if self.privileged else None
        made = tokenize(record, self.tokenizer, self.max_length, context=context)
        remarks = [] if remark is None else [remark]
        if not isinstance(record, Chat) and read_template_kwargs(row):
            remarks.append(_WITHOUT_TEMPLATE)
        return made._replace(remarks=(*remarks, *made.remarks), form=_form(record))

    def renders(self, rows: Iterable[Row]) -> bool:
        """Whether the first row that can be read becomes a conversation."""
        for row in rows:
            try:
                return isinstance(self._record(row)[0], Chat)
            except BadRowError:
                continue
        return False

    def _record(self, row: Row) -> tuple[Record, Remark | None]:
        """The row, as turns where it is to be, and what is to be said about that."""
        check_text_only(row)
        record = self.parser(row)
        if isinstance(record, Chat):
            _check_has_template(self.tokenizer)
            return record, None
        if isinstance(record, PlainText):
            if self.apply_chat_template:
                raise DataError(
                    "apply_chat_template needs prompt and completion, and the data has text: set it to false"
                )
            return record, None
        if self.apply_chat_template:
            _check_applicable(self.tokenizer)
            return record.as_chat(), None
        return self._decided(record)

    def _decided(self, record: PlainPair | PlainPrompt) -> tuple[Record, Remark | None]:
        if self.apply_chat_template is None and self.tokenizer.chat_template:
            if not _holds_template(record, self.tokenizer):
                return record.as_chat(), _AS_TURNS
            return record, _AS_IT_IS
        return (replace(record, before=()), _WITHOUT_SYSTEM) if record.before else (record, None)


def _form(record: Record) -> Form:
    if isinstance(record, Chat):
        return "chat"
    return "text" if isinstance(record, PlainText) else "plain"


def _check_has_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "the data is a conversation and the tokenizer has no chat template: "
            "set tokenizer.chat_template, or give prompt and completion as plain strings"
        )


def _check_applicable(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise ConfigError(
            "apply_chat_template is true, and the tokenizer has no chat template: set it to null or false, or give the "
            "tokenizer one"
        )


def _holds_template(record: PlainPair | PlainPrompt, tokenizer: Any) -> bool:
    """Whether a prompt was rendered already: it holds a special token of the template, or its words at an end."""
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

    ``template`` is the tokenizer's own, which somebody may change while the tokenizer stays.
    """
    try:
        text = render([{"role": "user", "content": "\N{SECTION SIGN}"}], {}, tokenizer, generation_prompt=True)
    except BadRowError:  # then every row says so
        return "", "", ()
    before, _, behind = text.partition("\N{SECTION SIGN}")
    added = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    return before.strip(), behind.strip(), tuple(token for token in sorted(added) if token in text)
