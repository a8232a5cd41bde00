"""Chat templates of common model families: which parts of a conversation are trained, and after which tokens."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from abkd.data.bad_rows import BadRowError
from abkd.data.chat import DATED, ENDED_TWICE, NO_END, OWN_EXAMPLES
from abkd.data.formats import Chat, recognise
from abkd.data.template import check_template, same_template
from abkd.data.tokenize import TokenizedRow, tokenize
from abkd.errors import ConfigError
from tiny_parts import CHATML, LLAMA, make_chatml, make_llama

HEAD = "<|im_start|>{{ m.role }}\n"
TURNS = "{% for m in messages %}" + HEAD + "BODY<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\nOPENED{% endif %}"
THINKING = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set reasoning = m.reasoning_content or '' -%}
{%- set content = m.content or '' -%}
{%- if '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip() -%}
{%- set content = content.split('</think>')[-1].strip() -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or reasoning) -%}
{{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}
{%- for call in m.tool_calls or [] -%}{{- '<call>' + (call.function | tojson) + '</call>' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""Reasoning of earlier questions is dropped, an empty one is written for the last answer."""
OPENING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}{% else %}"
    "A: {{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: <think>\n{% endif %}"
)
"""The generation prompt opens the reasoning, and no answer is ever shown with one."""
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def user(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def answer(content: Any = "bye", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def templated(template: str, make: Any = make_chatml) -> Any:
    tokenizer = make()
    tokenizer.chat_template = template
    return tokenizer


def body(expression: str, opened: str = "") -> Any:
    return templated(TURNS.replace("BODY", expression) + ASK.replace("OPENED", opened))


def row_of(messages: list[Any], tokenizer: Any, **more: Any) -> TokenizedRow:
    record = recognise({"messages"})({"messages": messages, **more})
    return tokenize(record, tokenizer, 2048)


def parts(row: TokenizedRow, tokenizer: Any) -> list[tuple[str, list[str]]]:
    """For each example, the text before its first trained token, and the trained text."""
    made = []
    for example in row.examples:
        pairs = list(zip(example["trained"], example["input_ids"], strict=True))
        runs = [(flag, tokenizer.decode([t for _, t in run])) for flag, run in itertools.groupby(pairs, lambda p: p[0])]
        made.append((runs[0][1], [text for trained, text in runs if trained]))
    return made


class TestReasoning:
    def test_each_answer_stands_behind_what_the_model_reads_in_use(self) -> None:
        tokenizer = templated(THINKING)
        turns = [user("a"), answer("b"), user("c"), answer("d", reasoning_content="why")]
        row = row_of(turns, tokenizer)
        assert row.remarks == (OWN_EXAMPLES,)
        (first, one), (second, two) = parts(row, tokenizer)
        assert first == tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        assert second == tokenizer.apply_chat_template(turns[:3], add_generation_prompt=True, tokenize=False)
        assert (one, two) == (["<think>\n\n</think>\n\nb<|im_end|>"], ["<think>\nwhy\n</think>\n\nd<|im_end|>"])

    def test_turns_that_the_template_keeps_stay_in_one_example(self) -> None:
        """Between two questions the reasoning is kept, so a tool call and what follows it are trained in one go."""
        tokenizer = templated(THINKING)
        calls = answer(None, tool_calls=[CALL], reasoning_content="look")
        row = row_of(
            [user(), calls, {"role": "tool", "content": "rain"}, answer("wet", reasoning_content="so")], tokenizer
        )
        ((_, trained),) = parts(row, tokenizer)
        assert trained == [
            '<think>\nlook\n</think>\n\n<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>',
            "<think>\nso\n</think>\n\nwet<|im_end|>",
        ]

    @pytest.mark.parametrize("last", [answer("<think>\nso</think>\n\nyes"), answer("yes", reasoning_content="so")])
    def test_reasoning_that_the_prompt_opens_is_put_back(self, last: dict[str, Any]) -> None:
        tokenizer = templated(OPENING, make_llama)
        ((prompt, trained),) = parts(row_of([user(), last], tokenizer), tokenizer)
        assert prompt == tokenizer.apply_chat_template([user()], add_generation_prompt=True, tokenize=False)
        assert trained == ["so\n</think>\n\nyes</s>"]

    def test_an_answer_without_the_reasoning_that_the_prompt_opens_is_named(self) -> None:
        with pytest.raises(BadRowError, match=r"prompt .* opens <think>, but the answer in message 2 has no reasoning"):
            row_of([user(), answer()], templated(OPENING, make_llama))

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
    def test_reasoning_that_is_not_rendered_is_said(self, field: str) -> None:
        (remark,) = row_of([user(), answer("4", **{field: "zebra"})], make_chatml()).remarks
        assert f"does not render {field} of a trained answer" in remark.text
        assert remark.warning

    def test_also_inside_the_content(self) -> None:
        tokenizer = body("{{ m.content.split('</think>')[-1] }}")
        (remark,) = row_of([user(), answer("<think>zebra</think>4")], tokenizer).remarks
        assert "<think> in the content" in remark.text


class TestTools:
    """Arguments are a JSON string or an object, and templates support one of the two."""

    TURNS = (user(), answer(None, tool_calls=[CALL]), {"role": "tool", "content": "rain"}, answer("wet"))

    @pytest.mark.parametrize(
        "written",
        [
            "{{ c.function.arguments | tojson }}",
            "{{ c.function.name + ' ' + c.function.arguments }}",
            "{{ c.function.name }}{{ c.function.arguments }}",
        ],
        ids=["objects", "strings", "either, objects as Python writes them"],
    )
    @pytest.mark.parametrize("content", ["{{ m.content or '' }}", "{{ m.content + '' }}"], ids=["none", "needed"])
    def test_the_call_is_trained_as_json(self, written: str, content: str) -> None:
        tokenizer = body(content + "{% for c in m.tool_calls or [] %}" + written + "{% endfor %}")
        ((_, trained),) = parts(row_of(list(self.TURNS), tokenizer), tokenizer)
        assert '{"city": "Oslo"}<|im_end|>' in trained[0]
        assert trained[1] == "wet<|im_end|>"

    def test_a_call_that_is_lost_is_named(self) -> None:
        with pytest.raises(BadRowError, match="does not render the tool_calls of message 2"):
            row_of(list(self.TURNS), make_chatml())

    @pytest.mark.parametrize("by", ["content", "another call", "OpenAI's older key"])
    def test_nor_does_its_name_elsewhere_hide_it(self, by: str) -> None:
        call = {"name": "weather", "arguments": {"city": "Oslo"}}
        other = {"name": "clock", "arguments": {}}
        first = "{% if m.tool_calls %}{{ m.tool_calls[0].name or m.tool_calls[0].function.name }}{% endif %}"
        turn, template = {
            "content": (answer("I ask weather.", tool_calls=[call]), "{{ m.content }}"),
            "another call": (answer("So:", tool_calls=[other, call]), "{{ m.content }}" + first),
            "OpenAI's older key": (answer("Well.", function_call=call), "{{ m.content }}"),
        }[by]
        with pytest.raises(BadRowError, match="does not render the tool_calls of message 2"):
            row_of([user(), turn], body(template))

    def test_schemas_that_are_not_rendered_are_said(self) -> None:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
        (remark,) = row_of([user(), answer()], make_chatml(), tools=tools).remarks
        assert "does not render tools" in remark.text


class TestWhatIsLeftOut:
    def test_turns_and_fields(self) -> None:
        tokenizer = body("{{ m.content if m.role != 'developer' }}")
        turns = [{"role": "developer", "content": "secret"}, user(name="zed"), answer()]
        texts = [remark.text for remark in row_of(turns, tokenizer).remarks]
        assert any("a turn of role 'developer'" in text for text in texts)
        assert any("'name' of a message" in text for text in texts)

    def test_an_answer_is_named(self) -> None:
        with pytest.raises(BadRowError, match="omits message 2"):
            row_of([user("a"), answer("b")], body("{{ 'x' }}"))

    def test_content_written_in_another_way_is_not_left_out(self) -> None:
        tokenizer = body("{{ m.content | upper }}")
        row = row_of([{"role": "system", "content": "be nice"}, user(), answer("bye")], tokenizer)
        assert row.remarks == ()
        assert parts(row, tokenizer)[0][1] == ["BYE<|im_end|>"]


def test_a_system_text_that_the_template_puts_into_the_next_turn_is_not_trained_as_an_answer() -> None:
    """Llama 2's template, and a conversation that starts with the assistant."""
    tokenizer = templated(
        "{% for m in messages %}{% if m.role != 'system' %}{{ '<|im_start|>' }}"
        "{{ messages[0].content + ' ' if loop.index0 == 1 and messages[0].role == 'system' else '' }}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt and messages | length > 1 %}"
        "{{ '<|im_start|>' }}{% endif %}"
    )
    system = {"role": "system", "content": "be a pirate"}
    with pytest.raises(BadRowError, match=r"writes message 1 \(system\) into the answer, message 2"):
        row_of([system, answer("Ahoy"), user(), answer("arr")], tokenizer)
    assert row_of([system, user(), answer("Ahoy")], tokenizer).remarks == ()


def test_the_date_that_a_template_writes_is_the_same_every_day() -> None:
    tokenizer = body("{{ m.content }} {{ strftime_now('%d %b %Y, %Y-%m-%d') }}")
    row = row_of([user("a"), answer("b")], tokenizer)
    assert parts(row, tokenizer)[0][1] == ["b 26 Jul 2024, 2024-07-26<|im_end|>"]
    assert row.remarks == (DATED,)


def test_parts_are_given_to_templates_that_want_them() -> None:
    tokenizer = body("{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}")
    ((_, trained),) = parts(row_of([user("a"), answer([{"type": "text", "text": "b"}])], tokenizer), tokenizer)
    assert trained == ["b<|im_end|>"]


def test_an_answer_that_the_template_does_not_end_is_ended() -> None:
    tokenizer = templated("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    row = row_of([user("a"), answer("b"), user("c"), answer("d")], tokenizer)
    assert row.remarks == (NO_END,)
    assert row.examples[0]["input_ids"][-1] == tokenizer.eos_token_id
    assert row.examples[0]["trained"][-1]


def test_an_end_that_an_answer_brings_along_is_not_written_twice() -> None:
    tokenizer = make_chatml()
    row = row_of([user("a"), answer("b<|im_end|>\n"), user("c"), answer("d<|im_end|>")], tokenizer)
    assert [trained for _, trained in parts(row, tokenizer)] == [["b<|im_end|>", "d<|im_end|>"]]
    assert row.remarks == (ENDED_TWICE,)


def test_a_weight_of_zero_is_context_only() -> None:
    tokenizer = make_chatml()
    turns = [user(), answer("bad", weight=0), user(), answer("good", weight=1)]
    ((prompt, trained),) = parts(row_of(turns, tokenizer), tokenizer)
    assert "bad" in prompt
    assert trained == ["good<|im_end|>"]


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        (
            [{"role": "system", "content": "x"}, user(), answer()],
            r"rejects the conversation: only user and assistant \(roles: system",
        ),
        ([user(), answer(), answer()], r"rejects the conversation: must alternate \(roles: user, assistant, assistant"),
    ],
)
def test_a_refused_order_of_roles_is_named(turns: list[Any], why: str) -> None:
    strict = "{% for m in messages %}{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}"
    strict += "{{ raise_exception('must alternate') }}{% endif %}{% endfor %}" + LLAMA
    with pytest.raises(BadRowError, match=why) as caught:
        row_of(turns, templated(strict, make_llama))
    assert caught.value.reason == "chat template rejects the conversation"


@pytest.mark.parametrize(
    "failing",
    [
        "1 / (0 if m.content == 'bad' else 1)",
        "m.content.missing.more",
        "m.content + 1",
        "m.content[99]['x'].y",
        "range(10 ** (9 if m.content == 'bad' else 1)) | list",
        "''.__class__.__mro__" + "[m.content | length]",
    ],
)
def test_whatever_a_template_raises_is_a_bad_row(failing: str) -> None:
    with pytest.raises(BadRowError):
        row_of([user("bad"), answer("ok?")], body("{{ " + failing + " }}"))


class TestTemplatesThemselves:
    @pytest.mark.parametrize(
        "broken", ["{% for m in messages %}", "{{ 1 / 0 }}", "{% include '/etc/passwd' %}", "{{ x | no }}"]
    )
    def test_a_broken_one_is_one_sentence(self, broken: str) -> None:
        with pytest.raises(ConfigError, match="the tokenizer's chat template is broken"):
            check_template(templated(broken))

    def test_one_that_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("abkd.data.template._PATIENCE", 0.01)
        loops = "{% for i in range(99999) %}" * 2 + "{{ i }}" + "{% endfor %}" * 2
        with pytest.raises(ConfigError, match="did not finish within"):
            check_template(templated(loops.replace("99999", "3000")))

    def test_one_that_writes_too_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("abkd.data.template._MUCH_TEXT", 1000)
        with pytest.raises(ConfigError, match="characters for two letters"):
            check_template(templated("{{ 'x' * 5000 }}"))

    def test_one_that_only_refuses_is_the_rows_business(self) -> None:
        check_template(templated("{{ raise_exception('never') }}"))
        check_template(templated("{{ messages[7].content.x }}"))
        check_template(make_chatml())

    def test_alike_is_what_is_written_alike(self) -> None:
        assert same_template(make_chatml(), templated(CHATML + "{# a comment #}"))
        assert not same_template(make_chatml(), templated(CHATML.replace("m['role'] +", "m['role'] + ': ' +")))
        assert not same_template(make_chatml(), templated(THINKING))


def test_prompts_alone_are_checked_too() -> None:
    (remark,) = tokenize(Chat((user(name="zed"),), first_trained=1), make_chatml(), 64).remarks
    assert "'name' of a message" in remark.text
