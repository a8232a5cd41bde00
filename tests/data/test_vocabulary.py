from __future__ import annotations

import re

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from abkd.data import check_same_tokenizer, prepare_dataset, pretraining_chunks, shared_vocabulary_size
from abkd.data.vocabulary import check_deterministic
from abkd.errors import ConfigError, VocabularyError
from tiny_parts import make_chatml, make_llama


def test_the_same_tokenizer_twice(chatml):
    check_same_tokenizer(chatml, chatml)
    check_same_tokenizer(chatml, make_chatml())


def test_padding_and_more_tokens_behind_are_no_difference(chatml):
    teacher = make_chatml()
    teacher.add_special_tokens({"pad_token": "<pad>"})
    check_same_tokenizer(chatml, teacher)
    check_same_tokenizer(teacher, chatml)


def test_other_merges_are_found(chatml):
    with pytest.raises(VocabularyError, match=r"differ: the text .* for the student and .* for the teacher"):
        check_same_tokenizer(chatml, make_chatml(size=300))


def test_other_special_tokens_are_found(chatml):
    student = make_chatml()
    student.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    teacher = make_chatml()
    teacher.add_special_tokens({"additional_special_tokens": ["<|other|>", "<|tool|>"]})
    with pytest.raises(VocabularyError, match="special token"):
        check_same_tokenizer(student, teacher)


def test_other_ids_are_found(chatml):
    with pytest.raises(VocabularyError, match=r"special token|token 0"):
        check_same_tokenizer(chatml, make_llama())


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_in_another_order_are_found(special):
    def fine_tuned(*tokens):
        made = make_chatml()
        made.add_tokens(list(tokens), special_tokens=special)
        return made

    student = fine_tuned("<a>", "<call>", "</call>")
    check_same_tokenizer(student, fine_tuned("<a>", "<call>", "</call>", "<more>"))
    with pytest.raises(VocabularyError, match=r"token '</?call>' is 34\d for the student and 34\d for the teacher"):
        check_same_tokenizer(student, fine_tuned("<a>", "</call>", "<call>"))
    with pytest.raises(VocabularyError, match="token 341 is '<call>' for the student and '<tool>' for the teacher"):
        check_same_tokenizer(student, fine_tuned("<a>", "<tool>"))


def test_added_tokens_that_swallow_spaces_on_one_side_are_found():
    student, teacher = make_chatml(), make_chatml()
    student.add_tokens(AddedToken("<call>", lstrip=True))
    teacher.add_tokens("<call>")
    student.add_tokens("<b>")
    teacher.add_tokens("<b>")
    with pytest.raises(VocabularyError, match="the text of all added tokens"):
        check_same_tokenizer(student, teacher)


def test_tokens_that_only_pad_may_clash(chatml):
    student, teacher = make_chatml(), make_chatml()
    student.add_special_tokens({"pad_token": "<pad>"})
    teacher.add_special_tokens({"pad_token": "[PAD]"})
    check_same_tokenizer(student, teacher)


def with_dropout(dropout):
    made = make_chatml()
    made.backend_tokenizer.model.dropout = dropout
    return made


class TestAtRandom:
    @pytest.mark.parametrize("dropout", [0.3, 0.002])
    def test_dropout_is_refused_before_anything_is_compared(self, chatml, dropout):
        random = with_dropout(dropout)
        for who, pair in [("student", (random, chatml)), ("teacher", (chatml, random)), ("student", (random, random))]:
            why = rf"the {who}'s tokenizer must encode .* at random \(BPE dropout {dropout}\): set dropout to null in"
            with pytest.raises(ConfigError, match=why):
                check_same_tokenizer(*pair)
        with pytest.raises(ConfigError, match="the tokenizer must encode text deterministically"):
            prepare_dataset([{"text": "hello"}], random)
        with pytest.raises(ConfigError, match="the tokenizer must encode text deterministically"):
            pretraining_chunks(["hello"], random, 16)

    def test_the_tokenizer_is_named(self, tmp_path):
        with_dropout(0.3).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=re.escape(f"what ({tmp_path}) must encode text deterministically")):
            check_deterministic(PreTrainedTokenizerFast.from_pretrained(tmp_path), "what")

    @pytest.mark.skipif(not hasattr(models.Unigram, "alpha"), reason="these tokenizers never sample")
    def test_sampling_is_refused(self):
        pieces = [("<unk>", 0.0), ("a", -1.0), ("aa", -1.5)]
        for options, random in [({}, False), ({"alpha": 0.5, "nbest_size": 1}, False), ({"alpha": 0.5}, True)]:
            core = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
            for name, value in options.items():  # not in any file
                setattr(tokenizer.backend_tokenizer.model, name, value)
            assert (len({tuple(tokenizer("a" * 9)["input_ids"]) for _ in range(50)}) > 1) == random
            if random:
                with pytest.raises(ConfigError, match=r"Unigram sampling, alpha 0\.5"):
                    check_deterministic(tokenizer, "it")
            else:
                check_deterministic(tokenizer, "it")
        slow = make_chatml()
        slow.sp_model_kwargs = {"enable_sampling": True, "alpha": 0.1}  # as those of sentencepiece have
        with pytest.raises(ConfigError, match="leave enable_sampling out of sp_model_kwargs"):
            check_deterministic(slow, "it")
        slow.sp_model_kwargs = {"enable_sampling": False}
        check_deterministic(slow, "it")

    @pytest.mark.parametrize("dropout", [None, 0.0])
    def test_without_dropout_nothing_is_random(self, chatml, dropout):
        check_same_tokenizer(with_dropout(dropout), chatml)


def test_heads_are_cut_to_the_tokens_that_exist(chatml):
    assert len(chatml) == 340
    assert shared_vocabulary_size(chatml, 340, 384) == shared_vocabulary_size(chatml, 512, 384) == 340


@pytest.mark.parametrize(("student", "teacher", "who"), [(339, 340, "student"), (340, 320, "teacher")])
def test_a_head_that_is_too_small(chatml, student, teacher, who):
    with pytest.raises(VocabularyError, match=f"the {who}'s head needs a row for each"):
        shared_vocabulary_size(chatml, student, teacher)


def test_ids_with_holes_count_to_the_highest():
    class Holes:
        def get_vocab(self):
            return {"a": 0, "b": 9}

        def __len__(self):
            return 2

    assert shared_vocabulary_size(Holes(), 10, 10) == 10
