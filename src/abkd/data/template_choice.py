"""Decide whether plain rows are rendered by a chat template: one setting per run, which depends on both models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from abkd.data.account import Account
from abkd.data.template import check_template, same_template
from abkd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")


def choose_template(
    given: bool | None, tokenizer: PreTrainedTokenizerBase, teachers: Mapping[str, PreTrainedTokenizerBase]
) -> bool | None:
    """``apply_chat_template`` for ``prepare_dataset``, given the tokenizers of the student and, by name, its teachers.

    None (decide row by row) becomes False if a teacher has no chat template: it was not trained on conversations.

    Raises:
        ConfigError: a template is to be applied, but the student's tokenizer has none, or a broken one.
    """
    if given and not tokenizer.chat_template:
        raise ConfigError(
            "apply_chat_template is true but the student's tokenizer has no chat template: set it to null or false, "
            "or add chat_template.jinja to the student's folder"
        )
    if given:
        check_template(tokenizer)
    if given is None and not all(each.chat_template for each in teachers.values()):
        return False
    return given


def say_of_templates(
    account: Account, tokenizer: PreTrainedTokenizerBase, teachers: Mapping[str, PreTrainedTokenizerBase]
) -> None:
    """Log remarks about the models' templates, given the rows that were read."""
    student = tokenizer.name_or_path or "the student"
    for name, other in teachers.items():
        if account.rendered and other.chat_template and not same_template(tokenizer, other):
            logger.warning(
                "abkd: the chat templates of student (%s) and teacher (%s) differ; both models read the student's, "
                "which the teacher was not trained on. To use the teacher's, copy its chat_template.jinja into the "
                "student's folder",
                student,
                name,
            )
        if account.plain and bool(tokenizer.chat_template) != bool(other.chat_template):
            with_one, without = ("student", "teacher") if tokenizer.chat_template else ("teacher", "student")
            logger.info(
                "abkd: the %s has a chat template but the %s (%s) has none: prompts and completions are plain text%s",
                with_one,
                without,
                name if without == "teacher" else student,
                " (apply_chat_template: true renders them as turns)" if with_one == "student" else "",
            )
