"""Small real parts: byte-level tokenizers trained on a few sentences, and random models of three families."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from abkd.data import prepare_dataset

prepare_plain = functools.partial(prepare_dataset, apply_chat_template=False)
"""Prompts and completions as they are written, also for tokenizers that have a chat template."""

SENTENCES = [
    "What does the function do? It returns the number of items in a list.",
    "Name the capital of France. The capital of France is Paris.",
    "def add(a, b):\n    return a + b",
    "user assistant system hello bye see you again, be nice",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)


def train_tokenizer(specials: list[str], *, size: int = 340, opening: str | None = None) -> Tokenizer:
    """Byte-level BPE; ``opening`` is put in front of every text, as BOS is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if opening:
        ids = [(opening, tokenizer.token_to_id(opening))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{opening} $A", special_tokens=ids)
    return tokenizer


def make_chatml(**kwargs) -> PreTrainedTokenizerFast:
    """End of turn, EOS and pad are one token; no BOS is added: like SmolLM2 and Qwen."""
    core = train_tokenizer(["<|im_start|>", "<|im_end|>"], **kwargs)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def make_llama() -> PreTrainedTokenizerFast:
    """BOS is added to texts, and written by the chat template."""
    core = train_tokenizer(["<s>", "</s>"], opening="<s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = LLAMA
    return tokenizer


def _llama_model(attention: str):
    config = LlamaConfig(
        vocab_size=340,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def _qwen2_model(attention: str, window: int | None = None):
    config = Qwen2Config(
        vocab_size=340,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=window is not None,
        sliding_window=window or 4096,
        max_window_layers=0,
        attn_implementation=attention,
    )
    return Qwen2ForCausalLM(config)


def _gpt2_model(attention: str):
    config = GPT2Config(
        vocab_size=340,
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config)


FAMILIES = {"llama": _llama_model, "qwen2": _qwen2_model, "gpt2": _gpt2_model}


def make_model(family: str, attention: str = "sdpa", **kwargs):
    """A random model whose outputs depend on its attention (the usual small initialisation hides leaks)."""
    torch.manual_seed(0)
    model = FAMILIES[family](attention, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    return model
