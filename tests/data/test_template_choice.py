"""Plain prompts and completions for chat models: rendered with the chat template by default."""

from __future__ import annotations

import logging
import pickle
from typing import ClassVar

import pytest

from abkd.data import choose_template, describe_start, prepare_dataset, say_of_templates
from abkd.data.account import Account
from abkd.data.formats import recognise
from abkd.data.steps import Steps
from abkd.errors import ConfigError, DataError
from tiny_parts import CHATML, make_chatml, make_llama

PAIR = {"prompt": "hi", "completion": "see you"}
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "see you"}]
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def without_template():
    made = make_chatml()
    made.chat_template = None
    return made


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "abkd")
    return caplog


def read(row, tokenizer, **options):
    return prepare_dataset([row], tokenizer, **options)[0]


class TestRows:
    def test_a_plain_pair_is_a_conversation(self, chatml, said):
        assert read(PAIR, chatml) == read({"messages": TURNS}, chatml)
        assert "apply_chat_template: false trains them as plain text" in said.text

    def test_a_plain_prompt_too(self, chatml):
        assert chatml.decode(read({"prompt": "hi"}, chatml, completions=False)["input_ids"]) == RENDERED

    @pytest.mark.parametrize("make", [make_chatml, make_llama])
    def test_a_prompt_that_was_rendered_already_stays(self, make, said):
        tokenizer = make()
        prompt = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
        example = read({"prompt": prompt, "completion": "see you"}, tokenizer)
        assert tokenizer.decode(example["input_ids"]) == f"{prompt}see you{tokenizer.eos_token}"
        assert "already contains tokens of the chat template" in said.text

    def test_text_never_and_false_is_false(self, chatml):
        assert chatml.decode(read({"text": "hello"}, chatml)["input_ids"]) == "hello<|im_end|>"
        assert chatml.decode(read(PAIR, chatml, apply_chat_template=False)["input_ids"]) == "hisee you<|im_end|>"

    def test_a_tokenizer_without_a_template_has_plain_rows(self, chatml):
        assert read(PAIR, without_template()) == read(PAIR, chatml, apply_chat_template=False)

    def test_the_account_knows_what_was_rendered(self, chatml):
        both = [PAIR, {"prompt": f"<|im_start|>{PAIR['prompt']}", "completion": "x"}]
        account = prepare_dataset(both, chatml).account
        assert (account.rows, account.rendered, account.plain) == (2, 1, 1)

    def test_a_system_message_beside_a_plain_pair(self, chatml, said):
        row = {**PAIR, "system": "be nice"}
        system = {"role": "system", "content": "be nice"}
        assert read(row, chatml) == read({"messages": [system, *TURNS]}, chatml)
        assert read(row, chatml, apply_chat_template=False) == read(PAIR, chatml, apply_chat_template=False)
        assert "the system message and the history are not used" in said.text

    def test_the_steps_travel_to_other_processes(self, chatml):
        steps = Steps(recognise(PAIR), chatml, 64)
        assert pickle.loads(pickle.dumps(steps))(PAIR) == steps(PAIR)


class TestTemplateKwargs:
    """The column ``chat_template_kwargs``, with a template that writes its values into every question."""

    GIVEN: ClassVar = {"mood": "calm", "filled": None}
    ASKED = "<|im_start|>user\nhi calm<|im_end|>\n<|im_start|>assistant\n"

    @pytest.fixture
    def moody(self):
        made = make_chatml()
        made.chat_template = CHATML.replace(
            "m['content'] +", "m['content'] + (' ' + mood if m.role == 'user' else '') +"
        )
        return made

    @pytest.mark.parametrize(
        "row",
        [
            {"messages": TURNS},
            {"prompt": TURNS[:1], "completion": TURNS[1:]},
            PAIR,
            {"instruction": "hi", "output": "see you"},
            {"prompt": "hi"},
            {"prompt": TURNS[:1]},
            {"instruction": "hi"},
        ],
        ids=lambda row: " ".join(f"{name}:{type(value).__name__}" for name, value in row.items()),
    )
    def test_every_row_that_is_rendered_gets_its_own(self, row, moody):
        answered = not row.keys().isdisjoint({"messages", "completion", "output"})
        example = read({**row, "chat_template_kwargs": self.GIVEN}, moody, completions=answered)
        assert moody.decode(example["input_ids"]) == self.ASKED + ("see you<|im_end|>" if answered else "")

    def test_each_row_has_its_own_and_a_teacher_with_a_context_too(self, moody):
        rows = [{"messages": TURNS, "chat_template_kwargs": {"mood": mood}} for mood in ("calm", "glad")]
        first, second = prepare_dataset(rows, moody, context="be nice", privileged=True)
        assert "hi calm" in moody.decode(first["teacher_input_ids"])
        assert "hi glad" in moody.decode(second["teacher_input_ids"])
        assert "hi glad" in moody.decode(second["input_ids"])

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ("calm", "chat_template_kwargs must be an object .*, got str"),
            ([{"mood": "calm"}], "chat_template_kwargs must be an object .*, got list"),
            ({"mood": "calm", "tools": []}, "got 'tools', reserved by apply_chat_template"),
            ({"tokenize": True, "return_dict": True}, "got 'return_dict', 'tokenize', reserved"),
            ({"messages": []}, "got 'messages', reserved"),
        ],
    )
    def test_what_is_no_variable_of_the_template_is_a_bad_row(self, given, why, moody):
        for row in (PAIR, {"messages": TURNS}, {"text": "hi"}):
            with pytest.raises(DataError, match=why):
                read({**row, "chat_template_kwargs": given}, moody)

    def test_what_is_not_used_is_said(self, moody, chatml, said):
        for row in (PAIR, {"text": "hi"}):
            given = {**row, "chat_template_kwargs": self.GIVEN}
            assert read(given, moody, apply_chat_template=False) == read(row, chatml, apply_chat_template=False)
            assert "no chat template is applied to the row, so its chat_template_kwargs are not used" in said.text
            said.clear()
        assert read({"messages": TURNS, "chat_template_kwargs": self.GIVEN}, chatml) == read(
            {"messages": TURNS}, chatml
        )
        assert "the chat template does not use 'mood' from chat_template_kwargs" in said.text
        said.clear()
        read({"messages": TURNS, "chat_template_kwargs": {"filled": None}}, chatml)
        read({"messages": TURNS, "chat_template_kwargs": self.GIVEN}, moody)
        assert not said.text


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
def test_rows_with_more_than_text_are_bad_rows(column, chatml):
    for row in (PAIR, {"messages": TURNS}, {"text": "hi"}, {"instruction": "hi", "output": "see you"}):
        for empty in (None, [], [None], "", {"bytes": None, "path": None}):
            assert read({**row, column: empty}, chatml) == read(row, chatml)
        for held in (["a.png"], "a.wav", {"path": "a.png"}, [b"RIFF"]):
            with pytest.raises(DataError, match=f"it has .* in column '{column}', but a language model reads"):
                read({**row, column: held}, chatml)


class TestModels:
    def test_both_must_have_a_template(self, chatml):
        assert choose_template(None, chatml, {}) is None
        assert choose_template(None, chatml, {"teacher": make_chatml()}) is None
        assert choose_template(None, chatml, {"teacher": without_template()}) is False
        assert choose_template(True, chatml, {"teacher": without_template()}) is True
        with pytest.raises(ConfigError, match="the student's tokenizer has no chat template"):
            choose_template(True, without_template(), {})

    def test_other_templates_are_said_with_both_names(self, chatml, said):
        teacher = make_chatml()
        teacher.chat_template = CHATML.replace("m['role'] +", "m['role'] + ': ' +")
        say_of_templates(Account(rows=1, rendered=1), chatml, {"big": teacher, "same": make_chatml()})
        (line,) = said.messages
        assert "the chat templates of student (the student) and teacher (big) differ" in line
        assert "both models read the student's" in line

    def test_where_one_has_none_the_way_out_is_said(self, chatml, said):
        say_of_templates(Account(rows=1, plain=1), chatml, {"base": without_template()})
        say_of_templates(Account(rows=1, plain=1), without_template(), {"chat": chatml})
        one, other = said.messages
        assert "the teacher (base) has none" in one
        assert "apply_chat_template: true renders them as turns" in one
        assert "the student (the student) has none" in other

    def test_rows_that_are_no_conversation_say_nothing(self, chatml, said):
        say_of_templates(Account(rows=1), chatml, {"base": without_template()})
        assert not said.messages


class TestStart:
    def test_the_first_row_is_shown_as_it_is_trained(self, chatml):
        ((sentence, warning),) = describe_start(prepare_dataset([PAIR], chatml), chatml, 64)
        assert sentence == f"abkd: the first row, with ⟦trained tokens⟧ marked:\n{RENDERED}⟦see you<|im_end|>⟧"
        assert not warning

    def test_a_long_one_in_part_and_no_control_characters(self, chatml):
        row = {"prompt": "a" * 5000 + "\x1b[2J", "completion": "b"}
        ((sentence, _),) = describe_start(prepare_dataset([row], chatml, max_length=9000), chatml, 9000)
        assert len(sentence) < 600
        assert "\x1b" not in sentence
        assert "\\x1b[2J" in sentence

    def test_rows_that_were_cut_and_their_share_of_tokens(self, chatml):
        rows = [{"text": "hello " * 20}, {"text": "bye"}]
        whole = prepare_dataset(rows, chatml, max_length=500).trained_tokens
        dataset = prepare_dataset(rows, chatml, max_length=20)
        share = 100 * (1 - dataset.trained_tokens / whole)
        _, (sentence, warning) = describe_start(dataset, chatml, 20)
        assert f"max_length 20 truncates 1 of 2 rows, which removes {share:.2g} % of the trained tokens" in sentence
        assert warning

    def test_of_packed_rows_the_first(self, chatml):
        from abkd.data import pack

        rows = [PAIR, {"prompt": "other", "completion": "row"}]
        packed = pack(prepare_dataset(rows, chatml), 128)
        assert len(packed) == 1
        ((sentence, _),) = describe_start(packed, chatml, 128)
        assert "other" not in sentence
