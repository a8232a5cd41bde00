from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from abkd.data import describe_sample
from abkd.data.chat import OWN_EXAMPLES
from abkd.data.formats import BadRowError, Chat, PlainPair, PlainText
from abkd.data.tokenize import MOVED, encode_text, tokenize
from abkd.errors import DataError
from tiny_parts import CHATML, make_chatml

CHATML_TOKENIZER = make_chatml()
TALK = (
    {"role": "system", "content": "be nice"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "see you"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "\nbye again"},
    {"role": "user", "content": "and never answered"},
)


def runs(record, tokenizer, max_length=512):
    """The row's text, cut where trained and untrained tokens meet: [(trained, text), …]."""
    (example,) = tokenize(record, tokenizer, max_length).examples
    pairs = zip(example["trained"], example["input_ids"], strict=True)
    return [(flag, tokenizer.decode([t for _, t in run])) for flag, run in itertools.groupby(pairs, lambda p: p[0])]


class TestPlain:
    def test_pair_verbatim_with_trained_eos(self, chatml):
        assert runs(PlainPair("What? ", "Paris."), chatml) == [(False, "What? "), (True, "Paris.<|im_end|>")]

    def test_eos_is_kept_although_it_is_the_pad_token(self, chatml):
        (example,) = tokenize(PlainPair("a", "b"), chatml, 64).examples
        assert example["input_ids"][-1] == chatml.pad_token_id == chatml.eos_token_id
        assert example["trained"][-1]

    def test_specials_are_not_doubled(self, chatml, llama):
        assert runs(PlainPair("a", "b<|im_end|>"), chatml) == [(False, "a"), (True, "b<|im_end|>")]
        assert runs(PlainPair("a", "b"), llama) == [(False, "<s>a"), (True, "b</s>")]
        assert runs(PlainPair("<s>a", "b</s>"), llama) == [(False, "<s>a"), (True, "b</s>")]

    def test_the_prompt_is_encoded_as_at_generation_time(self, chatml):
        """ "capital" is one token in the vocabulary; a prompt that ends inside it must not be merged with the rest."""
        whole = chatml(" capital")["input_ids"]
        prompt = chatml(" cap")["input_ids"]
        assert whole[: len(prompt)] != prompt, "the probe must be a word that merges across the border"
        (example,) = tokenize(PlainPair(" cap", "ital"), chatml, 64).examples
        assert example["input_ids"][: len(prompt)] == prompt
        assert example["trained"] == [False] * len(prompt) + [True] * (len(example["input_ids"]) - len(prompt))

    def test_text_trains_all_but_the_first_token(self, chatml, llama):
        (example,) = tokenize(PlainText("hello again"), chatml, 64).examples
        assert example["trained"] == [False] + [True] * (len(example["input_ids"]) - 1)
        assert example["input_ids"][-1] == chatml.eos_token_id
        assert runs(PlainText("hello"), llama) == [(False, "<s>"), (True, "hello</s>")]
        assert llama.decode(encode_text("hello", llama)) == "<s>hello</s>"

    def test_no_eos_token(self):
        tokenizer = make_chatml()
        tokenizer.eos_token = None
        with pytest.raises(DataError, match="EOS"):
            tokenize(PlainPair("a", "b"), tokenizer, 64)


class TestChat:
    def test_every_assistant_turn_and_its_end(self, chatml):
        assert runs(Chat(TALK), chatml) == [
            (
                False,
                "<|im_start|>system\nbe nice<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
            ),
            (True, "see you<|im_end|>"),
            (False, "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"),
            (True, "\nbye again<|im_end|>"),
        ]

    def test_only_the_completion_of_a_pair(self, chatml):
        trained = [text for flag, text in runs(Chat(TALK, first_trained=4), chatml) if flag]
        assert trained == ["\nbye again<|im_end|>"]

    def test_bos_of_the_template_is_the_only_one(self, llama):
        chat = PlainPair("hello", "bye").as_chat()
        assert runs(chat, llama) == [(False, "<s>[INST] hello [/INST]"), (True, " bye</s>")]

    def test_prompt_tokens_are_those_of_generation(self, chatml):
        (example,) = tokenize(Chat(TALK), chatml, 512).examples
        prompt = chatml.apply_chat_template(list(TALK[:4]), add_generation_prompt=True, return_dict=False)
        assert example["input_ids"][: len(prompt)] == prompt

    def test_a_template_that_drops_earlier_thinking_makes_an_example_of_each_answer(self):
        tokenizer = make_chatml()
        tokenizer.chat_template = CHATML.replace(
            "m['content']", "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
        )
        think = {"role": "assistant", "content": "<think>so</think>yes"}
        one = Chat((TALK[1], think))
        assert runs(one, tokenizer)[-1] == (True, "<think>so</think>yes<|im_end|>")
        turns = (TALK[1], think, TALK[3], think)
        row = tokenize(Chat(turns), tokenizer, 512)
        assert row.remarks == (OWN_EXAMPLES,)
        for example, turn in zip(row.examples, (1, 3), strict=True):
            prompt = tokenizer.apply_chat_template(list(turns[:turn]), add_generation_prompt=True, return_dict=False)
            assert example["input_ids"][: len(prompt)] == prompt, "what the model reads in use"
            answer = list(itertools.compress(example["input_ids"], example["trained"]))
            assert tokenizer.decode(answer) == "<think>so</think>yes<|im_end|>"

    def test_a_generation_prompt_that_the_answer_does_not_begin_with_is_refused(self):
        tokenizer = make_chatml()
        tokenizer.chat_template = CHATML.replace("assistant\n'", "assistant\nSure: '")
        with pytest.raises(BadRowError, match="with message 2"):
            tokenize(PlainPair("a", "b").as_chat(), tokenizer, 64)

    def test_a_template_that_refuses(self, llama):
        with pytest.raises(BadRowError, match="only user and assistant"):
            tokenize(Chat(TALK), llama, 512)


class TestBorders:
    """SentencePiece tokenizers put a space before each word, even at the start of a completion."""

    @pytest.fixture
    def spaced(self):
        plain = Tokenizer(models.BPE(unk_token="<unk>"))
        plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        plain.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
        plain.train_from_iterator(["Answer: yes it is", "Answer: no it is not"] * 20, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", unk_token="<unk>")

    @pytest.mark.parametrize(
        ("prompt", "completion"), [("Answer: ", "yes it is"), ("Answer:", " yes it is"), ("Answer: y", "es")]
    )
    def test_the_tokens_are_the_text(self, spaced, prompt, completion):
        (example,), _, remarks, _ = tokenize(PlainPair(prompt, completion), spaced, 64)
        assert spaced.decode(example["input_ids"], skip_special_tokens=True) == prompt + completion
        assert remarks == ()
        first = example["trained"].index(True)
        assert example["input_ids"][:first] == spaced(prompt)["input_ids"], "what the model reads in use"

    def test_where_no_border_fits_it_moves_and_that_is_said(self):
        words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "see": 2, "you": 3, "yo": 4, "u": 5}, "<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
        (example,), _, remarks, _ = tokenize(PlainPair("see yo", "u"), tokenizer, 64)
        assert example == {"input_ids": [2, 3, 1], "trained": [False, True, True]}
        assert remarks == (MOVED,)


class TestTruncation:
    def test_completion_is_cut_on_the_right_and_loses_its_eos(self, chatml):
        (whole,), cut, *_ = tokenize(PlainPair("What?", " Paris is nice again"), chatml, 512)
        assert not cut
        length = len(whole["input_ids"])
        for max_length in (length, length - 1, whole["trained"].index(True) + 1):
            (example,), cut, *_ = tokenize(PlainPair("What?", " Paris is nice again"), chatml, max_length)
            assert example["input_ids"] == whole["input_ids"][:max_length]
            assert cut == length - max_length
            assert any(example["trained"])

    def test_no_room_for_a_completion_token(self, chatml):
        prompt = "What? " * 20
        count = len(chatml(prompt)["input_ids"])
        message = f"prompt has {count} tokens, max_length is {count}: raise max_length or shorten the prompt"
        with pytest.raises(BadRowError, match=message):
            tokenize(PlainPair(prompt, "Paris."), chatml, count)
        tokenize(PlainPair(prompt, "Paris."), chatml, count + 1)

    def test_tail_that_only_follows_is_not_a_loss(self, chatml):
        (example,), cut, *_ = tokenize(Chat(TALK[:4]), chatml, 512)
        assert not cut
        assert example["trained"][-1]


@settings(max_examples=50, deadline=None)
@given(prompt=st.text(min_size=1), completion=st.text(min_size=1))
def test_the_text_of_a_pair_is_what_was_given(prompt, completion):
    """For any text: decoding restores it, and the trained part is the completion, byte for byte."""
    (example,) = tokenize(PlainPair(prompt, completion), CHATML_TOKENIZER, 10_000).examples
    trained = [t for t, flag in zip(example["input_ids"], example["trained"], strict=True) if flag]
    first = example["trained"].index(True)
    assert example["input_ids"][first:] == trained
    decode = CHATML_TOKENIZER.decode
    assert decode(example["input_ids"][:first]) == prompt
    assert decode(trained).removesuffix("<|im_end|>") == completion.removesuffix("<|im_end|>")


def test_describe_sample_marks_what_is_trained(chatml):
    (example,) = tokenize(PlainPair("What? ", "Paris."), chatml, 64).examples
    shown = describe_sample(example, chatml)
    assert shown.plain.startswith("What? ⟦Paris.<|im_end|>⟧\n")
    assert f"{len(example['input_ids'])} tokens, {sum(example['trained'])} trained" in shown.plain
    assert any("green" in str(span.style) for span in shown.spans)
