"""Helpers for training tests: rows, tiny models, a one-line trainer, and the distance of two models."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TrainerCallback

from abkd import AlphaBeta, DistillConfig, DistillTrainer
from tiny_parts import make_chatml

SINCE_5 = pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 does otherwise, or has it not")

# its name since transformers 5.20
CHECKPOINTING = "activation_checkpointing"
if CHECKPOINTING not in DistillConfig.__dataclass_fields__:
    CHECKPOINTING = "gradient_checkpointing"

WORDS = "the list returns items of a capital function and bye".split()


@functools.cache
def tokenizer() -> Any:
    """Without a chat template, so that plain rows stay as they are written here."""
    made = make_chatml()
    made.chat_template = None
    return made


def rows(count: int = 12) -> list[dict[str, str]]:
    """Prompts and completions of different lengths."""
    return [
        {"prompt": f"What is {WORDS[i % len(WORDS)]}? ", "completion": " ".join(WORDS[i % 7 : i % 7 + 1 + i % 4])}
        for i in range(count)
    ]


def write_rows(file: Path, some: Iterable[dict[str, str]]) -> None:
    """A JSONL file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in some))


def save_models(folder: Path, **models: Any) -> None:
    """A folder per model, with the tokenizer in it."""
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)


def chunks() -> list[list[int]]:
    """Plain text of different lengths, as token ids."""
    return [tokenizer()(" ".join(WORDS[i:]))["input_ids"] for i in range(4)]


def llama(seed: int, *, width: int = 32, layers: int = 1, classes: int = 340, sharpness: float = 3.0, **options: Any):
    """A random Llama, confident enough for a divergence to be far from 0."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=classes,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        **{"bos_token_id": None, "eos_token_id": 1, **options},
    )
    return _sharper(LlamaForCausalLM(config), sharpness)


def gpt2(seed: int, *, width: int = 32, layers: int = 1, sharpness: float = 3.0):
    """With learned positions and with dropout, which reads the random numbers of the run."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=340,
        n_positions=128,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        bos_token_id=None,
        eos_token_id=1,
    )
    return _sharper(GPT2LMHeadModel(config), sharpness)


def _sharper(model: Any, factor: float) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return model


def teacher() -> Any:
    return llama(7, width=48, layers=2, sharpness=6.0)


def config(path: Path | str, **options: Any) -> DistillConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(path),
        "use_cpu": True,
        "divergence": AlphaBeta(0.2, 0.7),
        "learning_rate": 1e-2,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "max_length": 64,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return DistillConfig(**{**defaults, **options})


def trainer(path: Path | str, student: Any = None, *, data: Any = None, teach: Any = None, **options: Any):
    """A DistillTrainer; ``options`` go to the trainer if it takes them, otherwise to the config."""
    own = {
        name: options.pop(name)
        for name in ("eval_dataset", "pretrain_chunks", "peft_config", "callbacks")
        if name in options
    }
    if options.get("lm_coef") and "pretrain_chunks" not in own:
        own["pretrain_chunks"] = chunks()
    return DistillTrainer(
        llama(0) if student is None else student,
        teacher() if teach is None else teach,
        config(path, **options),
        train_dataset=rows() if data is None else data,
        processing_class=make_chatml() if options.get("apply_chat_template") else tokenizer(),
        **own,
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def gap(one: Any, other: Any) -> float:
    """The largest difference of any weight of two models (or states)."""
    first, second = (thing if isinstance(thing, dict) else weights(thing) for thing in (one, other))
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


SHORT = {"max_completion_length": 6, "learning_rate": 3e-3}
FROM_BUFFER = "Replay(StudentSamples(), capacity=5, fresh=anneal(1.0, 0.0))"
EVERY_THIRD = {"save_strategy": "steps", "save_steps": 3}


class StopAfter(TrainerCallback):
    """Ends a run in the middle, after its checkpoint was saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def lora(dropout: float = 0.1):
    from peft import LoraConfig

    return LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def by_family(cases: Iterable[str], *again: str) -> pytest.MarkDecorator:
    """Parametrises ``case`` and ``family``: every case with GPT-2, which has dropout, a few with the others too."""
    pairs = [*((case, gpt2) for case in cases), *((case, llama) for case in again)]
    ids = [f"{case}-{family.__name__}" for case, family in pairs]
    return pytest.mark.parametrize(("case", "family"), pairs, ids=ids)
