"""Small random CLIPs in directories, with the tokenizer and files of real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from abkd.demo.clip import build_tokenizer
from abkd.models.vision import Preparation
from abkd.models.vision._processor import write_processor

NAMES = ("zero", "one", "two", "three", "four", "five")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def clip_in(directory: Path, seed: int, *, width: int, projection: int, layers: int = 3, side: int = 8) -> CLIPModel:
    """A random CLIP, sharp enough for its features to differ, saved for ``from_pretrained``."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = build_tokenizer(directory, NAMES)
    torch.manual_seed(seed)
    size = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "initializer_factor": 3.0,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": side, "patch_size": 2}
    config = CLIPConfig(text_config=size | text, vision_config=size | vision, projection_dim=projection)
    config.initializer_factor = 3.0
    clip = CLIPModel(config).eval()
    clip.save_pretrained(directory)
    write_processor(Preparation(MEAN, STD, side), directory)
    return clip


def image_features(clip: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The result of transformers; a tensor before version 5, an output object since."""
    found = clip.get_image_features(pixel_values=pixels)
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def text_features(clip: Any, **inputs: torch.Tensor) -> torch.Tensor:
    found = clip.get_text_features(**inputs)
    return found if isinstance(found, torch.Tensor) else found.pooler_output
