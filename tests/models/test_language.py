"""Rows of real (tiny) models: loss and gradient match those of the model's own logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import abkd
from abkd.data import Collator, prepare_dataset
from abkd.data.tokenize import Example
from abkd.errors import ConfigError
from abkd.generation import Sampling, write_completions
from abkd.models.language import CausalRows
from abkd.models.positions import Positions, first_position, positions_of
from abkd.objective import Objective
from abkd.ops import Dense, Projected, plan_chunks
from abkd.teachers import LiveReader
from abkd.trainer._distillation import DistillationLoss, Totals
from tiny_parts import make_model
from training_parts import SINCE_5, llama, teacher, tokenizer

V = 340
ROWS = [
    {"prompt": "What is a list? ", "completion": "it returns items"},
    {"prompt": "Name ", "completion": "the capital of France and bye"},
    {"prompt": "See you again, be ", "completion": "nice"},
]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": V}
LLAMA_LIKE = {**SIZE, "num_key_value_heads": 2}
GEMMA = {**LLAMA_LIKE, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 64}


def made(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        family = getattr(transformers, f"{name}ForCausalLM")
        return family(family.config_class(**{"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1, **options}))

    make.__name__ = name
    return make


def phi() -> Any:
    """Its head has a bias."""
    model = made("Phi", **SIZE)()
    nn.init.normal_(model.lm_head.bias)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "llama": made("Llama", **LLAMA_LIKE),
    "llama, tied": made("Llama", **LLAMA_LIKE, tie_word_embeddings=True),
    "qwen2, tied": made("Qwen2", **LLAMA_LIKE, tie_word_embeddings=True),
    "gpt2": lambda: make_model("gpt2"),
    "gemma2, soft cap": made("Gemma2", **GEMMA),
    "gemma3, soft cap": made("Gemma3", **GEMMA),
    "cohere, logit scale": made("Cohere", **LLAMA_LIKE, logit_scale=0.3),
    "cohere2, logit scale": made("Cohere2", **LLAMA_LIKE, logit_scale=0.3),
    "granite, logits scaling": made("Granite", **LLAMA_LIKE, logits_scaling=7.0),
    "phi, bias": phi,
}
ROBERTA = {**SIZE, "is_decoder": True, "max_position_embeddings": 24, "pad_token_id": 1, "eos_token_id": 2}


def random_weights(make: Callable[[], Any]) -> Any:
    """In double precision, with weights large enough to expose any wrong scale."""
    torch.manual_seed(3)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def a_batch() -> Any:
    data = prepare_dataset(ROWS, tokenizer(), max_length=64)
    return Collator(pad_token_id=1)([data[i] for i in range(len(data))])["batch"]


def dense_loss(student: Any, teach: Any, batch: Any) -> torch.Tensor:
    """The result from the model's own logits, with none of our code between the model and the divergence."""
    z_student = student(**batch.student.inputs).logits.flatten(0, 1)[batch.student.rows]
    with torch.no_grad():
        z_teacher = teach(**batch.student.inputs).logits.flatten(0, 1)[batch.student.rows]
    return abkd.divergence_loss(z_student.float(), z_teacher.float(), abkd.AlphaBeta(0.2, 0.7))


def our_loss(rows: CausalRows, teach: Any, batch: Any) -> torch.Tensor:
    objective = Objective(divergence=abkd.AlphaBeta(0.2, 0.7)).open()
    plan = plan_chunks(len(batch), V, torch.device("cpu"))
    return DistillationLoss(rows, LiveReader(teach), objective, plan).losses(
        batch, 0.0, Totals.of([batch], objective, 0.0)
    )["loss"]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(model: Any, rows: CausalRows, tolerance: float = 1e-5) -> None:
    batch, teach = a_batch(), teacher().eval()
    expected = dense_loss(model, teach, batch)
    wanted = gradients(model, expected)
    found = our_loss(rows, teach, batch)
    got = gradients(model, found)
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    assert got.keys() == wanted.keys()
    largest = max(value.abs().max() for value in wanted.values())
    assert largest > 0
    for name, value in wanted.items():
        assert (got[name] - value).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_the_own_logits(name):
    model = random_weights(MODELS[name])
    rows = CausalRows(model)
    rows.check()
    assert rows.dense_because is None
    assert isinstance(rows(a_batch().student), Projected)
    check_equal(model, rows)


def test_logits_themselves_agree_in_double_precision():
    for make in MODELS.values():
        model = random_weights(make).double()
        rows, view = CausalRows(model), a_batch().student
        ours = rows(view).logits(slice(None))
        theirs = model(**view.inputs).logits.flatten(0, 1)[view.rows]
        assert (ours - theirs).abs().max() < 1e-12 * theirs.abs().max()


class Scaled(transformers.LlamaForCausalLM):
    """A scale that is not in the configuration."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out


def test_an_unknown_scale_is_noticed(caplog):
    model = random_weights(lambda: Scaled(llama(0).config))
    rows = CausalRows(model)
    with caplog.at_level(logging.WARNING, "abkd"):
        rows.check()
    assert "Scaled is read through its logits, which takes more memory" in caplog.text
    assert "its logits differ from those of its head by 9.1%" in caplog.text
    assert isinstance(rows(a_batch().student), Dense)
    check_equal(model, rows)


class Linear4bit(nn.Linear):
    """Like a quantised layer: its weight is not what its forward multiplies by."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 2.0


def test_a_quantised_head_is_used_as_it_is(caplog):
    model = random_weights(MODELS["llama"])
    head = Linear4bit(32, V, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    rows = CausalRows(model)
    with caplog.at_level(logging.WARNING, "abkd"):
        rows.check()
    assert "its head is a Linear4bit, not a plain linear layer" in caplog.text
    check_equal(model, rows)


ADAPTERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "on layers": ({"target_modules": ["q_proj", "down_proj"]}, None),
    "on the embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, None),
    "on the head": ({"target_modules": ["q_proj", "lm_head"]}, "its head is a Linear, not a plain linear layer"),
    "head trained": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "ModulesToSaveWrapper"),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters(name, caplog):
    from peft import LoraConfig, get_peft_model

    options, reason = ADAPTERS[name]
    torch.manual_seed(0)
    model = get_peft_model(
        random_weights(MODELS["llama"]), LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    ).eval()
    rows = CausalRows(model)
    with caplog.at_level(logging.WARNING, "abkd"):
        rows.check()
    assert isinstance(rows(a_batch().student), Projected if reason is None else Dense)
    assert (reason or "") in caplog.text
    check_equal(model, rows)


def test_a_head_cut_to_the_shared_classes():
    model = random_weights(MODELS["gemma2, soft cap"])
    rows, view = CausalRows(model, classes=300), a_batch().student
    rows.check()
    assert rows.dense_because is None
    theirs = model(**view.inputs).logits.flatten(0, 1)[view.rows][:, :300]
    torch.testing.assert_close(rows(view).logits(slice(None)), theirs, rtol=1e-5, atol=1e-5)


def test_under_autocast_the_own_logits_are_met_to_bfloat16():
    model, teach, batch = random_weights(MODELS["llama"]), teacher().eval(), a_batch()
    exact = dense_loss(model, teach, batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        rows = CausalRows(model)
        rows.check()
        assert rows.dense_because is None
        expected, found = dense_loss(model, teach, batch).item(), our_loss(rows, teach, batch).item()
    assert abs(found - exact) <= abs(expected - exact) + 2e-3 * exact
    assert found == pytest.approx(expected, rel=1e-2)


# -- models that differ from their declared type -----------------------------------------------------------------


def bert(**options: Any) -> Any:
    config = transformers.BertConfig(**{**SIZE, "max_position_embeddings": 64, **options})
    return transformers.AutoModelForCausalLM.from_config(config)


def test_a_model_that_sees_later_tokens_is_refused():
    with pytest.raises(ConfigError, match="BertLMHeadModel is not a causal language model: its prediction at"):
        CausalRows(bert()).check()
    CausalRows(bert(is_decoder=True)).check()


class Opening(transformers.LlamaForCausalLM):
    """A prefix language model: the first two tokens see each other."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits[:, 0] += 0.1 * out.logits[:, 1]
        return out


class LookAhead(transformers.LlamaForCausalLM):
    """Like a window that extends to the right: each output depends on the next token but one."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits[:, :-2] += 0.1 * out.logits[:, 2:]
        return out


@pytest.mark.parametrize("kind", [Opening, LookAhead])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_of_the_future_is_too_much(kind, dtype):
    with pytest.raises(ConfigError, match="is not a causal language model"):
        CausalRows(kind(llama(0).config).to(dtype)).check()


def test_proofs_leave_the_model_as_it_was():
    model = make_model("gpt2").train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    CausalRows(model).check()
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tuples(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs).to_tuple()


class FixedLength(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids.shape[1] != 16:
            raise RuntimeError("16 tokens,\nno less")
        return super().forward(input_ids=input_ids, **kwargs)


@pytest.mark.parametrize(("kind", "said"), [(Tuples, "no attribute 'logits'"), (FixedLength, "16 tokens, no less")])
def test_a_model_that_cannot_be_tried_out_is_refused_in_a_sentence(kind, said):
    model = kind(llama(0).config).train()
    with pytest.raises(ConfigError, match=rf"{kind.__name__} fails on a few tokens .*{said}"):
        CausalRows(model).check()
    assert model.training


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: nn.Linear(3, 4), "must be a causal language model of transformers, got Linear"),
        (lambda: llama(0).model, "LlamaModel has no head over the vocabulary"),
    ],
)
def test_another_module_is_no_language_model(module, said):
    with pytest.raises(ConfigError, match=said):
        CausalRows(module())


def seeing() -> Any:
    """Rotary embeddings for text; a table of 4 positions for vision."""
    seen = {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config={**LLAMA_LIKE, "head_dim": 8, "max_position_embeddings": 24},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            **seen,
        },
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


POSITIONS = {
    "gemma3 with eyes": (seeing, Positions(24, table=False)),
    "gpt2": (lambda: make_model("gpt2"), Positions(128, table=True)),
    "opt": (
        made("OPT", **SIZE, ffn_dim=64, max_position_embeddings=24, word_embed_proj_dim=32),
        Positions(24, table=True),
    ),
    "gptj": (
        made("GPTJ", n_embd=32, n_layer=1, n_head=4, rotary_dim=4, vocab_size=V, n_positions=24),
        Positions(24, table=True),
    ),
    "bert": (lambda: bert(is_decoder=True), Positions(64, table=True)),
    "roberta": (made("Roberta", **ROBERTA), Positions(22, table=True)),
    "llama": (made("Llama", **LLAMA_LIKE, max_position_embeddings=24), Positions(24, table=False)),
    "bloom": (made("Bloom", vocab_size=V, hidden_size=32, n_layer=1, n_head=4), None),
}


@pytest.mark.parametrize("family", POSITIONS)
def test_how_many_positions_a_model_has(family):
    make, expected = POSITIONS[family]
    model = make().eval()
    assert positions_of(model) == expected
    if expected is not None and expected.table:
        ids, last = torch.tensor([[1, 2]]), torch.tensor([[0, expected.count - 1]]) + first_position(model)
        model(input_ids=ids, position_ids=last)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids, position_ids=last + torch.tensor([[0, 1]]))


@SINCE_5  # transformers 4 cannot mask in float64 with this torch
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_whose_positions_begin_behind_the_padding_is_read_as_it_reads_by_itself(side):
    """RoBERTa's first position is 2, and generate() of transformers counts from 0."""
    model = random_weights(made("Roberta", **ROBERTA)).double()
    rows = CausalRows(model)
    rows.check()
    written = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    examples = [Example(input_ids=ids, trained=[True] * len(ids)) for ids in written]
    view = Collator(pad_token_id=1, padding_side=side)(examples)["batch"].student
    found = rows(view).logits(slice(None))
    alone = [model(input_ids=torch.tensor([ids])).logits[0, :-1] for ids in written]
    assert (found - torch.cat(alone)).abs().max() < 1e-12 * found.abs().max()

    completions = write_completions(model, tokenizer(), written, Sampling(temperature=0.0), max_new_tokens=3)
    for ids, completion in zip(written, completions, strict=True):
        for count, token in enumerate(completion.ids):
            read = torch.tensor([[*ids, *completion.ids[:count]]])
            assert token == model(input_ids=read).logits[0, -1].argmax()


def test_a_model_that_counts_positions_in_a_way_of_its_own_is_refused():
    class Backwards(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, **kwargs):
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1]).flip(0)[None] * 3
            return super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)

    torch.manual_seed(0)
    rows = CausalRows(Backwards(transformers.LlamaConfig(**LLAMA_LIKE)))
    with pytest.raises(ConfigError, match="uses nonstandard position ids"):
        rows.check()
