"""Plain prompts and completions of chat models: rendered by the chat template unless somebody says otherwise."""

from __future__ import annotations

import logging
import pickle

import pytest

from abkd.data import choose_template, describe_start, prepare_dataset, say_of_templates
from abkd.data.account import Account
from abkd.data.formats import recognise
from abkd.data.steps import Steps
from abkd.errors import ConfigError
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
        assert "holds tokens of the chat template already" in said.text

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
        assert "apply_chat_template: true makes them turns" in one
        assert "the student (the student) has none" in other

    def test_rows_that_are_no_conversation_say_nothing(self, chatml, said):
        say_of_templates(Account(rows=1), chatml, {"base": without_template()})
        assert not said.messages


class TestStart:
    def test_the_first_row_is_shown_as_it_is_trained(self, chatml):
        ((sentence, warning),) = describe_start(prepare_dataset([PAIR], chatml), chatml, 64)
        assert sentence == f"abkd: the first row, as it is trained, ⟦trained tokens⟧:\n{RENDERED}⟦see you<|im_end|>⟧"
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
        assert f"max_length 20 cuts 1 of 2 rows, and with their ends {share:.2g} % of the tokens" in sentence
        assert warning

    def test_of_packed_rows_the_first(self, chatml):
        from abkd.data import pack

        rows = [PAIR, {"prompt": "other", "completion": "row"}]
        packed = pack(prepare_dataset(rows, chatml), 128)
        assert len(packed) == 1
        ((sentence, _),) = describe_start(packed, chatml, 128)
        assert "other" not in sentence
