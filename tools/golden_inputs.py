"""Small models and data for ``tools/golden.py``, created without abkd, so that every commit can read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SIDE = 16
_NAMES = ("cat", "dog", "fox", "hen")
_MEAN_AND_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


def write_inputs(directory: Path) -> None:
    """Write all inputs of the runs in ``tools/golden.py``, deterministically."""
    _write_rows(directory)
    _write_language_models(directory)
    _write_images(directory)
    _write_classifiers(directory)
    for name, width, seed in (("clip-teacher", 32, 1), ("clip", 16, 2)):
        _write_clip(directory / name, width, seed)


def _write_rows(directory: Path) -> None:
    rows = [
        {"prompt": f"What is {_WORDS[a]} and {_WORDS[b]}?", "completion": f" It is {_WORDS[a + b]}, or {a + b}."}
        for a in range(6)
        for b in range(6)
    ]
    for name, some in (("rows", rows[::2] + rows[1::4]), ("held_out", rows[3::4])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def _write_language_models(directory: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<eos>", pad_token="<pad>")
    llama: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    special: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    special |= {"pad_token_id": tokenizer.pad_token_id}
    for name, seed, width in (("teacher", 1, 32), ("llama", 2, 16)):
        size: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
        torch.manual_seed(seed)
        _save(LlamaForCausalLM(LlamaConfig(**llama, **special, **size)), directory / name, tokenizer)
    torch.manual_seed(3)
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, **special)
    _save(GPT2LMHeadModel(gpt2), directory / "gpt2", tokenizer)


def _save(model: Any, directory: Path, tokenizer: Any) -> None:
    _sharpen(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _write_images(directory: Path) -> None:
    """Waves of low frequency, with one frequency per class."""
    drawn = np.random.default_rng(7)
    down, across = np.mgrid[0 : 1 : _SIDE * 1j, 0 : 1 : _SIDE * 1j]
    for name, count in (("images", 32), ("held_out", 16)):
        labels = np.arange(count) % len(_NAMES)
        phase = drawn.uniform(0, 6, (count, 1, 1, 3))
        waves = np.sin((2 + 3 * labels)[:, None, None, None] * (down + across)[None, :, :, None] + phase)
        pixels = np.round((waves + 1) * 127.5).astype(np.uint8)
        np.savez(directory / f"{name}.npz", images=pixels, labels=labels, classes=np.array(_NAMES))


def _write_classifiers(directory: Path) -> None:
    vit: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit |= {"image_size": _SIDE, "patch_size": 8}
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    for family, options, seed in (("vit", vit, 4), ("resnet", resnet, 5)):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **options, num_labels=len(_NAMES))
        config.id2label = dict(enumerate(_NAMES))
        config.label2id = {name: number for number, name in enumerate(_NAMES)}
        model = AutoModelForImageClassification.from_config(config)
        _sharpen(model)
        model.save_pretrained(directory / family)
        _write_processor(directory / family, "ViTImageProcessor")


def _write_clip(directory: Path, width: int, seed: int) -> None:
    directory.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    files = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 32}),
    }
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "projection_dim": width}
    vision = {"image_size": _SIDE, "patch_size": 8, "projection_dim": width}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config={**size, **text}, vision_config={**size, **vision}, projection_dim=width)
    model = CLIPModel(config)
    _sharpen(model)
    model.save_pretrained(directory)
    _write_processor(directory, "CLIPImageProcessor")


def _write_processor(directory: Path, kind: str) -> None:
    side = {"height": _SIDE, "width": _SIDE}
    side = {"size": side, "crop_size": side, "do_resize": True, "do_normalize": True}
    values = {"image_processor_type": kind, **side, **_MEAN_AND_STD}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))


def _sharpen(model: nn.Module) -> None:
    """Scale the weights up so that the output depends on the input; at initialisation it hardly does."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Linear):
                part.weight.mul_(5.0)
