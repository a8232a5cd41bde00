from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkd.data import Collator, Example, TokenizedDataset, check_packing, pack
from abkd.data.pack import _best_fit
from abkd.errors import ConfigError, DataError
from tiny_parts import FAMILIES, make_model


def make_dataset(lengths=(11, 3, 7, 20, 5, 2, 9)) -> TokenizedDataset:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 340, (n,), generator=generator).tolist() for n in lengths]
    return TokenizedDataset(
        [Example(input_ids=row, trained=[False, *[i % 3 > 0 for i in range(1, len(row))]]) for row in ids]
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 40))
def test_every_row_is_in_one_group_that_fits(lengths, capacity):
    groups = _best_fit(lengths, capacity)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= capacity for group in groups)
    assert groups == _best_fit(lengths, capacity)
    loads = sorted(sum(lengths[i] for i in group) for group in groups)
    assert len(loads) < 2 or loads[0] + loads[1] > capacity, "two groups that fit into one"


def test_packs_close():
    assert sorted(pack(make_dataset(), 20).lengths) == [17, 20, 20]
    with pytest.raises(DataError, match="at most 19 tokens, got one of 20 in train"):
        pack(make_dataset(), 19)


def test_what_cannot_be_joined_is_refused():
    row = Example(input_ids=[1, 2], trained=[False, True], teacher_input_ids=[1], teacher_trained=[True])
    with pytest.raises(DataError, match="train also has teacher_input_ids, teacher_trained: set packing: false"):
        pack(TokenizedDataset([*make_dataset(), row]), 33)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_rows_alone(family, attention):
    """Value and gradient of the summed loss; three packed sequences of different lengths against seven rows."""
    dataset = make_dataset()
    found = []
    for examples in (list(dataset), list(pack(dataset, 20)), list(pack(dataset, 33))):
        model = make_model(family, attention)
        batch = Collator(pad_token_id=0)(examples)["batch"]
        logits = model(**batch.student.inputs_for(model), use_cache=False).logits.flatten(0, 1)[batch.student.rows]
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        losses.sum().backward()
        gradient = model.get_input_embeddings().weight.grad
        found.append((losses.detach().sort().values, gradient))
    for losses, gradient in found[1:]:
        torch.testing.assert_close(losses, found[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-3 * found[0][1].abs().max().item())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_check_packing_accepts_what_is_exact(family, attention):
    model = make_model(family, attention).train()
    check_packing(model, 64)
    assert model.training


def test_check_packing_accepts_bf16():
    check_packing(make_model("llama").to(torch.bfloat16), 64)


def test_check_packing_finds_a_mask_that_is_ignored(monkeypatch):
    model = make_model("llama")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda attention_mask, **inputs: forward(**inputs))
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None, raising=True
    )
    with pytest.raises(ConfigError, match="do not keep packed rows apart"):
        check_packing(model, 64)


def test_check_packing_finds_a_sliding_window():
    check_packing(make_model("qwen2", window=64), 64)
    with pytest.raises(ConfigError, match="packing changes what Qwen2ForCausalLM computes"):
        check_packing(make_model("qwen2", window=16), 64)


def test_the_trap_that_inputs_for_avoids():
    """Eager attention adds a boolean mask as numbers: no error, and every token attends to every other."""
    joined = pack(make_dataset(), 33)[0]
    view = Collator(pad_token_id=0)([joined])["batch"].student
    eager, sdpa = make_model("llama", "eager"), make_model("llama", "sdpa")
    with torch.no_grad():
        right = sdpa(**view.inputs, use_cache=False).logits
        wrong = eager(**view.inputs, use_cache=False).logits
        mended = eager(**view.inputs_for(eager), use_cache=False).logits
    torch.testing.assert_close(mended, right, rtol=1e-4, atol=1e-4)
    assert (wrong - right).abs().max() > 0.1 * right.abs().max()
