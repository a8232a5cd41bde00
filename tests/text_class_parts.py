"""Helpers for text classification: a tokenizer that marks pairs, tiny classifiers of several families, rows."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from abkd import DistillConfig, DistillTrainer
from tiny_parts import train_tokenizer

NAMES = ("negative", "neutral", "positive")
WORDS = "the list returns items of a capital function and bye".split()
_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**_SMALL, "max_position_embeddings": 64},
    "roberta": {**_SMALL, "max_position_embeddings": 66, "pad_token_id": 2},
    "distilbert": {**_DISTIL, "max_position_embeddings": 64},
    "gpt2": {**_GPT2, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 2},
    "llama": {**_SMALL, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1},
}


@functools.cache
def tokenizer(size: int = 340) -> Any:
    """``[CLS] text [SEP]``, and for pairs ``[CLS] one [SEP] other [SEP]`` with token types 0 and 1."""
    core = train_tokenizer(["[CLS]", "[SEP]", "[PAD]"], size=size)
    marks = [(mark, core.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=names, **special)


def classifier(seed: int, family: str = "bert", *, names: Any = NAMES, sharpness: float = 4.0, **options: Any) -> Any:
    """A random classifier in eval mode, whose logits depend on its text; ``names``: of its classes, or their number."""
    torch.manual_seed(seed)
    known = {} if isinstance(names, int) else {"id2label": dict(enumerate(names))}
    known |= {"label2id": {name: i for i, name in known["id2label"].items()}} if known else {"num_labels": names}
    config = AutoConfig.for_model(family, vocab_size=340, **FAMILIES[family], **known, **options)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(sharpness)
    return model


def teacher(**options: Any) -> Any:
    return classifier(7, sharpness=8.0, **options)


def texts(count: int = 12, *, labelled: bool = True, pairs: bool = False) -> list[dict[str, Any]]:
    """Texts of different lengths, each with one of three classes."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        row: dict[str, Any] = {"text": f"{i} " + " ".join(WORDS[i % 7 : i % 7 + 1 + i % 5])}
        row |= {"text_pair": " ".join(WORDS[: 1 + i % 3])} if pairs else {}
        rows.append(row | ({"label": i % 3} if labelled else {}))
    return rows


def write_texts(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def save(folder: Path, **models: Any) -> dict[str, str]:
    """A folder for each model, with the tokenizer in it."""
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def text_trainer(
    path: Path, model: Any = None, *, data: Any = None, teach: Any = None, **options: Any
) -> DistillTrainer:
    """Six steps on twelve texts, in batches of two."""
    own = {name: options.pop(name) for name in ("eval_dataset", "peft_config", "callbacks") if name in options}
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "ce_weight": 0.5,
        "max_length": 64,
        "dataloader_pin_memory": False,
        **options,
    }
    return DistillTrainer(
        classifier(0) if model is None else model,
        teacher() if teach is None else teach,
        DistillConfig(output_dir=str(path), task="text-classification", **settings),
        train_dataset=texts() if data is None else data,
        processing_class=None if isinstance(model, str) else tokenizer(),
        **own,
    )
