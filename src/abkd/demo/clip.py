"""Two small CLIPs that are trained here, on scanned digits and their captions, for base-to-new without a download.

All parts are real: scikit-learn's digits, a byte-level BPE tokenizer trained on the captions, and ``CLIPModel`` of
transformers in two sizes. The larger one is trained on all training images with captions, the smaller one on a few.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkd.demo._students import pixels_of, write_arrays

if TYPE_CHECKING:
    from torch import Tensor


CAPTION = "a photo of the digit {}."
_MOST_TOKENS = 16
_BATCH = 32
_PEAK = 1.5e-3


@dataclass(frozen=True)
class Build:
    """The size of a small CLIP and its training: on the first ``images`` (None: all), for ``epochs``."""

    width: int
    layers: int
    projection: int
    epochs: int
    images: int | None = None


TEACHER = Build(width=64, layers=2, projection=64, epochs=12)
STUDENT = Build(width=32, layers=2, projection=32, epochs=40, images=200)


@dataclass(frozen=True)
class Small:
    """The directories of two CLIPs, and the image files: for training, and held out from all training."""

    teacher: Path
    student: Path
    train_file: Path
    held_out_file: Path


def build_small(directory: Path, *, seed: int = 0) -> Small:
    """Train both CLIPs on scikit-learn's digits, and write the models and images for base-to-new distillation.

    Both are trained on images of all ten digits, with captions; the distillation itself then needs no captions.

    Args:
        directory: gets ``teacher/``, ``student/``, ``train.npz`` and ``held_out.npz`` (a fifth of the images).
        seed: of the split, the weights and the order of the images.

    Raises:
        DataError: scikit-learn is not installed.
    """
    import torch

    from abkd.data.images import load_images, split_images

    train, held_out = split_images(load_images("digits"), 0.2, seed)
    small = Small(directory / "teacher", directory / "student", directory / "train.npz", directory / "held_out.npz")
    directory.mkdir(parents=True, exist_ok=True)
    for images, file in ((train, small.train_file), (held_out, small.held_out_file)):
        write_arrays(images, file)
    pixels = torch.from_numpy(pixels_of(train)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    labels, names = torch.from_numpy(train.labels), train.class_names or ()
    train_clip(small.teacher, TEACHER, pixels, labels, names, seed=seed)
    train_clip(small.student, STUDENT, pixels, labels, names, seed=seed)
    return small


def train_clip(
    directory: Path, build: Build, pixels: Tensor, labels: Tensor, class_names: Sequence[str], *, seed: int = 0
) -> Any:
    """Train a CLIP on images and their captions, and save it with its tokenizer and its image processor's file.

    Args:
        directory: where it is saved, for ``from_pretrained``.
        build: its size and its training.
        pixels: uint8 ``[N, 3, S, S]``, S even.
        labels: int64 ``[N]``, indices of ``class_names``.
        class_names: words; the caption of an image is ``CAPTION`` with its word.
        seed: of the weights and the order of the images. The caller's RNG state is unchanged.

    Returns:
        The ``CLIPModel``, in eval mode.
    """
    import torch

    from abkd.models.clip import CLIP_MEAN, CLIP_STD
    from abkd.models.vision import Preparation, write_processor

    directory.mkdir(parents=True, exist_ok=True)
    side = pixels.shape[-1]
    preparation = Preparation(CLIP_MEAN, CLIP_STD, side)
    write_processor(preparation, directory)
    tokenizer = build_tokenizer(directory, class_names)
    captions = tokenizer([CAPTION.format(name) for name in class_names], padding=True, return_tensors="pt")
    images, labels = preparation(pixels[: build.images]), labels[: build.images]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = _new_clip(build, tokenizer, side)
        _learn(clip, images, labels, captions, build.epochs)
    clip.save_pretrained(directory)
    return clip


def build_tokenizer(directory: Path, class_names: Sequence[str]) -> Any:
    """Train and save a tokenizer of CLIP's kind (lower case, byte-level BPE with ``</w>``) on the captions."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator([CAPTION.format(name).lower() for name in class_names], trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    made = dict.fromkeys(left + right for left, right in merges)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *made]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    files = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": _MOST_TOKENS}),
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _new_clip(build: Build, tokenizer: Any, side: int) -> Any:
    from transformers import CLIPConfig, CLIPModel

    size = {
        "hidden_size": build.width,
        "intermediate_size": 4 * build.width,
        "num_hidden_layers": build.layers,
        "num_attention_heads": 4,
        "projection_dim": build.projection,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _MOST_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": side, "patch_size": 2}
    config = CLIPConfig(
        text_config={**size, **text},
        vision_config={**size, **vision},
        projection_dim=build.projection,
    )
    return CLIPModel(config)


def _learn(clip: Any, images: Tensor, labels: Tensor, captions: Any, epochs: int) -> None:
    """Contrastive training; all images with the same caption are its positives."""
    import torch

    steps = epochs * -(-len(images) // _BATCH)
    optimizer = torch.optim.AdamW(clip.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=steps, pct_start=0.2)
    clip.train()
    for _ in range(epochs):
        for some in torch.randperm(len(images)).split(_BATCH):
            logits = clip(**captions, pixel_values=images[some]).logits_per_image
            own = torch.nn.functional.one_hot(labels[some], logits.shape[1]).float()
            of_captions = own / own.sum(0).clamp(min=1.0)
            loss = torch.nn.functional.cross_entropy(logits, own)
            loss = loss - (of_captions * logits.log_softmax(0)).sum(0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    clip.eval()
