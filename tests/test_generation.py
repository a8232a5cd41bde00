"""Generation in batches says what generation one by one says; ROUGE-L is the papers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from abkd.errors import ConfigError, DataError
from abkd.generation import generate_answers, rouge_l
from tiny_parts import make_chatml

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21], [30, 31, 32, 33], [40], [50, 51, 52, 53, 54, 55]]


@pytest.fixture(scope="module")
def tokenizer():
    return make_chatml()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tokenizer: Any):
    sizes = {
        "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    }[request.param]
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **sizes, **ids)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # answers that differ from prompt to prompt
    return model.eval()


def one_by_one(model: Any, tokenizer: Any, prompt: list[int], tokens: int) -> str:
    """The judge: the likeliest next token of the whole text so far, without cache, padding or generate()."""
    text = list(prompt)
    for _ in range(tokens):
        text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        if text[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(text[len(prompt) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_change_no_greedy_answer(model: Any, tokenizer: Any, batch_size: int) -> None:
    expected = [one_by_one(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 2
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected


def test_sampling_follows_its_seed_and_leaves_the_random_state(model: Any, tokenizer: Any) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, do_sample=True, seed=seed, batch_size=2)
        for seed in (10, 10, 20)
    )
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_is_from_the_whole_distribution(tokenizer: Any) -> None:
    """A model of one flat distribution; with the usual top-k of 50 most tokens would never come."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tokenizer), **sizes))
    torch.nn.init.zeros_(model.lm_head.weight)
    model.generation_config = GenerationConfig(top_k=1, repetition_penalty=1.5, max_length=3, eos_token_id=[0, 1])
    own = model.generation_config
    written: list[torch.Tensor] = []
    generate = model.generate
    model.generate = lambda **kwargs: written.append(generate(**kwargs)) or written[-1]
    generate_answers(model, tokenizer, [[5]] * 32, max_new_tokens=100, do_sample=True)
    tokens = torch.cat([sample[:, 1:].flatten() for sample in written])
    assert len(tokens.unique()) > 0.9 * len(tokenizer)
    assert model.generation_config is own


def test_mode_order_and_progress(model: Any, tokenizer: Any) -> None:
    told: list[tuple[int, int]] = []
    model.train()
    generate_answers(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=2, progress=lambda *now: told.append(now))
    assert model.training
    model.eval()
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert generate_answers(model, tokenizer, []) == []


def test_impossible_requests(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="Prompt 1 has no token"):
        generate_answers(model, tokenizer, [[5], []])
    with pytest.raises(ConfigError, match="at least 1"):
        generate_answers(model, tokenizer, PROMPTS, max_new_tokens=0)
    with pytest.raises(ConfigError, match="at least 1"):
        generate_answers(model, tokenizer, PROMPTS, batch_size=0)


def test_rouge_l_by_hand() -> None:
    # "the cat sat on the mat" / "the cat lay on a mat": the common subsequence has 4 of 6 and 6 words
    assert rouge_l(["the cat lay on a mat"], ["the cat sat on the mat"]) == pytest.approx(100 * 4 / 6)
    # order counts: 1 of 2 and 2
    assert rouge_l(["b a"], ["a b"]) == pytest.approx(50)
    # precision 2/2, recall 2/4
    assert rouge_l(["returns list"], ["It returns a list"]) == pytest.approx(100 * 2 * 0.5 / 1.5)


def test_rouge_l_stems_takes_the_best_reference_and_the_mean() -> None:
    assert rouge_l(["Returning LISTS!"], ["return list"]) == pytest.approx(100)
    assert rouge_l(["a list"], [["something else", "a list"]]) == pytest.approx(100)
    assert rouge_l(["a list", ""], ["a list", "a list"]) == pytest.approx(50)


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], ["a", "b"]), (["a"], [[]])])
def test_rouge_l_never_cuts_silently(predictions: list[str], references: list[Any]) -> None:
    with pytest.raises(DataError):
        rouge_l(predictions, references)
