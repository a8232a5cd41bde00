"""Shrinking: the right layers are removed, the rest computes the same, and the result is an ordinary model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from abkd.errors import ConfigError
from abkd.models.shrink import decoder_layers, layer_influence, shrink
from training_parts import SINCE_5

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 6, "n_head": 4, "eos_token_id": 1, "bos_token_id": 0}
FAMILIES = {
    "llama": SIZES,
    "qwen2": SIZES | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "gemma2": SIZES | {"sliding_window": 4},
    "gemma3_text": SIZES | {"sliding_window": 4},
    "gpt2": GPT2,
    "openai-gpt": GPT2,
}
EACH = [pytest.param(each, marks=SINCE_5 if each == "openai-gpt" else ()) for each in FAMILIES]
EXAMPLES = [list(range(3, 20)), list(range(9, 14))]
INFLUENCE = [0.5, 0.1, 0.4, 0.2, 0.0, 0.3]  # three kept: 0, 2, 5


def make(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()


def without_layers(model: Any, kept: tuple[int, ...]) -> Any:
    """Reference: the model itself with its list of layers replaced, each layer as it was built."""
    judge = copy.deepcopy(model)
    name, layers = decoder_layers(judge)
    parent, _, attribute = name.rpartition(".")
    setattr(judge.get_submodule(parent), attribute, nn.ModuleList([layers[i] for i in kept]))
    config = judge.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    config.num_hidden_layers = len(kept)
    return judge


@pytest.mark.parametrize("family", EACH)
def test_the_most_influential_layers_stay_and_compute_the_same(family: str, tmp_path: Path) -> None:
    model = make(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = torch.tensor([EXAMPLES[0]])
    student, kept = shrink(model, 3, INFLUENCE)
    assert kept == (0, 2, 5)
    with torch.no_grad():
        expected = without_layers(model, kept)(ids, use_cache=False).logits
        logits = student(ids).logits
        assert torch.equal(logits, expected)
        student.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert loaded.config.num_hidden_layers == 3
        torch.testing.assert_close(loaded(ids).logits, logits)
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1}
    assert torch.equal(loaded.generate(ids, **greedy), without_cache(student, ids, 4))
    after = model.state_dict()
    assert model.config.num_hidden_layers == 6
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def without_cache(model: Any, ids: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == 1:
            break
    return ids


def test_shrinking_again_is_shrinking_once() -> None:
    model = make("llama")
    twice, _ = shrink(shrink(model, 4, INFLUENCE)[0], 2, [0.5, 0.4, 0.2, 0.3])
    once, kept = shrink(model, 2, INFLUENCE)
    assert kept == (0, 2)
    ids = torch.tensor([EXAMPLES[1]])
    assert torch.equal(twice(ids).logits, once(ids).logits)


def test_tied_heads_stay_tied_and_weights_are_copies() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES, tie_word_embeddings=True))
    student, _ = shrink(model, 2, INFLUENCE)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert student.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()
    assert student.training
    assert student.generation_config is not model.generation_config


def test_dtype_is_kept() -> None:
    student, _ = shrink(make("llama").to(torch.bfloat16), 2, INFLUENCE)
    assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("layers", [-1, 0, 6, 7])
def test_impossible_sizes_are_refused(layers: int) -> None:
    with pytest.raises(ConfigError, match=rf"layers must be 1 to 5 .*this model's 6\), got {layers}"):
        shrink(make("llama"), layers, INFLUENCE)


def test_layers_that_compute_by_their_number_are_refused() -> None:
    """DiffLlama's attention depends on the index of its layer, which its configuration cannot express."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("diffllama", **SIZES)).train()
    with pytest.raises(ConfigError, match="by their index: layer 2 gives another output as layer 1"):
        shrink(model, 3, INFLUENCE)
    assert model.training
    assert not any(layer._forward_hooks for layer in decoder_layers(model)[1])


@pytest.mark.parametrize("influence", [[0.1] * 5, [0.1] * 5 + [float("nan")]])
def test_unfit_influence_is_refused(influence: list[float]) -> None:
    with pytest.raises(ConfigError, match="one finite number for each of the 6 layers"):
        shrink(make("llama"), 3, influence)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = make("llama")
    model.extra = nn.ModuleList(nn.Identity() for _ in range(6))
    with pytest.raises(ConfigError, match=r"got: model\.layers, extra"):
        decoder_layers(model)


@pytest.mark.parametrize("family", EACH)
def test_influence_is_what_the_definition_says(family: str) -> None:
    """Text by text, without padding, from the hidden states that the model returns."""
    model = make(family)
    sums, tokens = torch.zeros(6, dtype=torch.float64), 0
    seen: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(decoder_layers(model)[1]):
        layer.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out if torch.is_tensor(out) else out[0]}))
    with torch.no_grad():
        for example in EXAMPLES:
            hidden = model(torch.tensor([example]), output_hidden_states=True).hidden_states
            inputs = hidden[:6]
            cosine = [torch.cosine_similarity(inputs[i].double(), seen[i].double(), dim=-1) for i in range(6)]
            sums += torch.stack([(1 - c).sum() for c in cosine])
            tokens += len(example)
    measured = layer_influence(model, EXAMPLES, batch_size=2)
    torch.testing.assert_close(torch.tensor(measured).double(), sums / tokens, rtol=1e-4, atol=1e-6)


def test_a_layer_that_does_nothing_has_no_influence_and_goes_first() -> None:
    model = make("llama")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        nn.init.zeros_(model.model.layers[3].get_submodule(name).weight)
    influence = layer_influence(model, EXAMPLES)
    assert influence[3] == pytest.approx(0, abs=1e-6)
    student, kept = shrink(model, 5, influence)
    assert kept == (0, 1, 2, 4, 5)
    ids = torch.tensor([EXAMPLES[0]])
    torch.testing.assert_close(student(ids).logits, model(ids).logits)


def test_measuring_leaves_the_model_as_it_was_and_tells_how_far_it_is() -> None:
    model = make("llama").train()
    told: list[tuple[int, int]] = []
    layer_influence(model, [*EXAMPLES, []], batch_size=1, progress=lambda *now: told.append(now))
    assert told == [(1, 2), (2, 2)]
    assert model.training
    assert not any(layer._forward_hooks for layer in decoder_layers(model)[1])


@pytest.mark.parametrize("examples", [[], [[]]])
def test_no_text_is_refused(examples: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="no token"):
        layer_influence(make("llama"), examples)
