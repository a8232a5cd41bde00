"""Generation in batches equals generation one by one; ROUGE-L is that of the papers."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from abkd.errors import ConfigError, DataError
from abkd.evaluation import rouge_l
from abkd.generation import Completion, Sampling, generate_answers, settle, write_completions
from tiny_parts import make_chatml, make_model

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
    """Reference: the most probable next token of the whole text so far, without cache, padding or generate()."""
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
    """A model with a flat distribution; with the usual top-k of 50 most tokens would never be sampled."""
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
    with pytest.raises(DataError, match="Prompt 1 is empty"):
        generate_answers(model, tokenizer, [[5], []])
    with pytest.raises(ConfigError, match="at least 1"):
        generate_answers(model, tokenizer, PROMPTS, max_new_tokens=0)
    with pytest.raises(ConfigError, match="at least 1"):
        generate_answers(model, tokenizer, PROMPTS, batch_size=0)


GREEDY = Sampling(temperature=0)


@pytest.fixture
def stopping(model: Any) -> Any:
    """The model with several tokens that end its text, so that texts end at all lengths."""
    stopping = copy.deepcopy(model)
    stopping.generation_config = GenerationConfig(eos_token_id=list(range(100, 130)))
    return stopping


def ids_one_by_one(model: Any, prompt: list[int], tokens: int, ends: set[int]) -> Completion:
    """The same reference, including EOS."""
    text = list(prompt)
    while len(text) < len(prompt) + tokens and (len(text) == len(prompt) or text[-1] not in ends):
        text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return Completion(text[len(prompt) :], text[-1] in ends)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_completions_keep_their_end_and_nothing_behind_it(stopping: Any, tokenizer: Any, batch_size: int) -> None:
    """The pad token is EOS here, which also ends a text."""
    ends = {*range(100, 130), tokenizer.eos_token_id}
    prompts = [*PROMPTS, *([token, 7] for token in range(60, 75))]
    limits = [3 + i % 20 for i in range(len(prompts))]
    expected = [ids_one_by_one(stopping, *pair, ends) for pair in zip(prompts, limits, strict=True)]
    assert {written.finished for written in expected} == {True, False}
    assert write_completions(stopping, tokenizer, prompts, GREEDY, max_new_tokens=limits, batch_size=batch_size) == (
        expected
    )


def test_the_tokenizers_own_end_is_kept_though_it_pads_too(model: Any, tokenizer: Any) -> None:
    """A sequence that has EOS as its second token, in a batch with one that continues."""
    model = copy.deepcopy(model)
    first, second = [5, 6], [20, 21, 22]
    model.generation_config.eos_token_id = None
    step = ids_one_by_one(model, first, 2, set()).ids[1]
    with torch.no_grad():  # the model's second token is EOS now
        weight = model.get_output_embeddings().weight
        rows = weight[[tokenizer.eos_token_id, step]].clone()
        weight[step], weight[tokenizer.eos_token_id] = rows[0], rows[1]
    written = write_completions(model, tokenizer, [first, second], GREEDY, max_new_tokens=6)
    assert written[0].finished
    assert written[0].ids[-1] == tokenizer.eos_token_id not in written[0].ids[:-1]
    assert written == [ids_one_by_one(model, prompt, 6, {tokenizer.eos_token_id}) for prompt in (first, second)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9, top_k=20)], ids=str)
def test_batches_change_no_drawn_text(stopping: Any, tokenizer: Any, sampling: Sampling) -> None:
    prompts = [*PROMPTS, PROMPTS[1], [60, 61]]

    def drawn(order: list[int], batch_size: int) -> list[Completion]:
        chosen = [prompts[i] for i in order]
        found = write_completions(stopping, tokenizer, chosen, sampling, max_new_tokens=12, batch_size=batch_size)
        return [found[order.index(i)] for i in range(len(prompts))]

    expected = drawn(list(range(7)), 8)
    assert expected[1] != expected[5]  # a repeated prompt gets two texts
    assert drawn(list(range(7)), 1) == drawn(list(range(7)), 3) == expected
    assert drawn([6, 0, 1, 5, 2, 3, 4], 3) == expected


def test_tokens_are_drawn_as_the_model_says(tokenizer: Any) -> None:
    """First tokens of 3000 texts, compared with the softmax, full and truncated."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[30:] = 0  # a few likely tokens, and many that share the rest
        scores = model(torch.tensor([[5, 6]])).logits[0, -1]

    def shares(sampling: Sampling, **kwargs: Any) -> torch.Tensor:
        written = write_completions(
            model, tokenizer, [[5, 6]] * 3000, sampling, max_new_tokens=1, batch_size=3000, generation_kwargs=kwargs
        )
        found = torch.zeros(len(scores))
        for token, count in Counter(completion.ids[0] for completion in written).items():
            found[token] = count / 3000
        return found

    # three standard deviations of a share are at most 0.027
    assert (shares(Sampling()) - scores.softmax(-1)).abs().max() < 0.027
    hot = shares(Sampling(temperature=4.0))
    assert (hot - (scores / 4).softmax(-1)).abs().max() < 0.027
    top = scores.topk(3)
    of_three = torch.zeros(len(scores)).scatter(0, top.indices, (top.values / 4).softmax(-1))
    cut = shares(Sampling(temperature=4.0, top_k=3))
    assert (cut - of_three).abs().max() < 0.027
    assert (cut > 0).sum() == 3
    likely = (scores / 4).softmax(-1)
    assert set(shares(Sampling(temperature=4.0), min_p=0.5).nonzero().flatten().tolist()) == set(
        (likely >= 0.5 * likely.max()).nonzero().flatten().tolist()
    )


def test_beams_find_what_is_likelier_than_the_greedy_text(model: Any, tokenizer: Any) -> None:
    def score(prompt: list[int], written: list[int]) -> float:
        logits = model(torch.tensor([prompt + written])).logits[0].log_softmax(-1)
        return sum(logits[len(prompt) + t - 1, token].item() for t, token in enumerate(written))

    state = torch.get_rng_state()
    greedy, beams, alone = (
        write_completions(model, tokenizer, PROMPTS, sampling, max_new_tokens=5, batch_size=size)
        for sampling, size in ((GREEDY, 8), (Sampling(temperature=0, num_beams=6), 8), (Sampling(0, num_beams=6), 1))
    )
    assert beams == alone
    triples = zip(PROMPTS, greedy, beams, strict=True)
    scores = [[score(prompt, text.ids) for text in texts] for prompt, *texts in triples]
    assert all(beam >= likely - 1e-4 for likely, beam in scores)
    assert any(beam > likely + 1e-3 for likely, beam in scores)
    drawn = [
        write_completions(model, tokenizer, PROMPTS, Sampling(1.0, num_beams=3), max_new_tokens=5, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(state, torch.get_rng_state())


def test_a_long_prompt_may_share_a_batch_with_a_long_answer(tokenizer: Any) -> None:
    """GPT-2 has 128 positions; a finished row continues to count positions, and must not count beyond them."""
    model = make_model("gpt2")
    prompts, limits = [[5] * 120, [6, 7]], [8, 100]
    together = write_completions(model, tokenizer, prompts, GREEDY, max_new_tokens=limits)
    alone = [
        write_completions(model, tokenizer, [prompt], GREEDY, max_new_tokens=limit)[0]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert together == alone
    assert [len(written.ids) for written in together] == limits


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(num_beams=2), Sampling(0, num_beams=2)], ids=str)
def test_the_padding_of_a_head_is_never_written(tokenizer: Any, sampling: Sampling) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[300:] *= 20
    free, held = (
        write_completions(model, tokenizer, PROMPTS, sampling, max_new_tokens=8, classes=classes)
        for classes in (None, 300)
    )
    assert max(token for written in free for token in written.ids) >= 300
    assert max(token for written in held for token in written.ids) < 300


def test_generation_kwargs_win(model: Any, tokenizer: Any) -> None:
    assert settle(Sampling(), {"temperature": 0.5, "num_beams": 2, "min_p": 0.1}) == (
        Sampling(temperature=0.5, num_beams=2),
        {"min_p": 0.1},
    )
    assert settle(Sampling(top_p=0.5), {"do_sample": False})[0] == Sampling(temperature=0.0, top_p=0.5)
    ways = [
        write_completions(model, tokenizer, PROMPTS, sampling, max_new_tokens=20, generation_kwargs=kwargs)
        for sampling, kwargs in (
            (GREEDY, {}),
            (Sampling(), {"do_sample": False}),
            (GREEDY, {"no_repeat_ngram_size": 1}),
        )
    ]
    assert ways[0] == ways[1] != ways[2]
    for prompt, written in zip(PROMPTS, ways[2], strict=True):
        assert len({*prompt, *written.ids}) == len(prompt) + len(written.ids)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temprature": 1}, "'temprature' is not supported, use one of: .*temperature"),
        ({"max_new_tokens": 5}, "max_completion_length"),
        ({"num_return_sequences": 5}, "num_generations"),
        ({"stop_strings": ["a"]}, "is not supported, use one of"),
        ({"top_p": 2}, "top_p must be above 0"),
        ({"min_p": 7}, "min_p"),
        ({"temperature": 0, "do_sample": True}, "do_sample=True needs a temperature above 0"),
    ],
)
def test_generation_kwargs_that_cannot_be_meant(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(Sampling(), kwargs)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"num_beams": 0},
    ],
    ids=str,
)
def test_samplings_that_cannot_be_meant(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Sampling(**values)


def test_limits_that_cannot_be_meant(model: Any, tokenizer: Any) -> None:
    for limits, message in (([5], "got 1 for 5 prompts"), ([5, 5, 0, 5, 5], "at least 1")):
        with pytest.raises(ConfigError, match=message):
            write_completions(model, tokenizer, PROMPTS, GREEDY, max_new_tokens=limits)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what PEFT calls in transformers
def test_adapters_take_part_and_the_model_is_as_before(model: Any, tokenizer: Any) -> None:
    peft = pytest.importorskip("peft")
    whole = copy.deepcopy(model)
    expected = write_completions(whole, tokenizer, PROMPTS, GREEDY, max_new_tokens=8)
    targets = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(target_modules=targets, fan_in_fan_out=targets == ["c_attn"], init_lora_weights=False)
    adapted = peft.get_peft_model(whole, config)
    own = adapted.get_base_model().generation_config
    assert write_completions(adapted, tokenizer, PROMPTS, GREEDY, max_new_tokens=8) != expected
    with adapted.disable_adapter():
        assert write_completions(adapted, tokenizer, PROMPTS, GREEDY, max_new_tokens=8) == expected
    assert adapted.get_base_model().generation_config is own


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
