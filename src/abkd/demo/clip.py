"""``abkd demo --clip``: distils a CLIP into a smaller one on unlabelled images, evaluated on base and new classes.

Both are first trained here, on scanned digits and their captions, so nothing is downloaded. All parts are real:
scikit-learn's digits, a byte-level BPE tokenizer trained on the captions, and ``CLIPModel`` of transformers in two
sizes. The directory of the demo gets ``clips/`` (both models and the images) and ``students/`` (a sweep: a directory
per objective and seed).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abkd.demo.digits import SGD, distil_students, pixels_of, write_digits
from abkd.demo.harness import Demo, Size, data_files, recipe, say, stage
from abkd.report.files import Record

if TYPE_CHECKING:
    from transformers import BatchEncoding, CLIPModel, PreTrainedTokenizerBase

SETTINGS = {
    "KD": {"divergence": "ForwardKL()"},
    "reverse KL": {"divergence": "ReverseKL()"},
    "ABKD(.6, .5)": {"divergence": "AlphaBeta(0.6, 0.5)"},
}
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


def _steps(output_dir: Path, size: Size) -> Record:
    say("abkd demo: a small CLIP learns from a larger one to classify digits, from images without labels.")
    with stage("training both CLIPs on captioned digits"):
        small = build_small(output_dir / "clips")
    student = recipe(
        output_dir / "students",
        (small.train_file, small.held_out_file),
        task="zero-shot-image-classification",
        model_name_or_path=str(small.student),
        teacher_model_name_or_path=str(small.teacher),
        prompt_template=CAPTION,
        visual_prompt_length=4,
        visual_prompt_depth=2,
        kd_weight=10.0,
        num_train_epochs=size.epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=256,
        learning_rate=0.02,
        **SGD,
    )
    return distil_students(output_dir, student, SETTINGS, size.seeds)


DEMO = Demo(
    full=Size(epochs=4, seeds=(1, 2, 3)),
    quick=Size(epochs=1, seeds=(1,)),
    files=("clips/teacher", "clips/student", "clips/train.npz", "clips/held_out.npz", "students"),
    steps=_steps,
)


def build_small(directory: Path) -> Small:
    """Train both CLIPs on images of all ten digits with captions; the distillation itself then needs no captions.

    ``directory`` gets ``teacher/``, ``student/``, ``train.npz`` and ``held_out.npz`` (a fifth of the images).

    Raises:
        DataError: scikit-learn is not installed.
    """
    train, _ = write_digits(directory, 0.2)
    small = Small(directory / "teacher", directory / "student", *data_files(directory, "npz"))
    pixels = torch.from_numpy(pixels_of(train)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    labels, names = torch.from_numpy(train.labels), train.class_names or ()
    train_clip(small.teacher, TEACHER, pixels, labels, names)
    train_clip(small.student, STUDENT, pixels, labels, names)
    return small


def train_clip(directory: Path, build: Build, pixels: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    """Train a CLIP on images and their captions, and save it with its tokenizer and its image processor's file.

    Args:
        pixels: uint8 ``[N, 3, S, S]``, S even.
        labels: int64 ``[N]``, indices of ``class_names``.
        class_names: words; the caption of an image is ``CAPTION`` with its word.
    """
    from abkd.models.clip import CLIP_MEAN, CLIP_STD
    from abkd.models.vision import Preparation, write_processor

    directory.mkdir(parents=True, exist_ok=True)
    preparation = Preparation(CLIP_MEAN, CLIP_STD, pixels.shape[-1])
    write_processor(preparation, directory)
    tokenizer = build_tokenizer(directory, class_names)
    captions = tokenizer([CAPTION.format(name) for name in class_names], padding=True, return_tensors="pt")
    images, labels = preparation(pixels[: build.images]), labels[: build.images]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = _new_clip(build, tokenizer, pixels.shape[-1])
        _learn(clip, images, labels, captions, build.epochs)
    clip.save_pretrained(directory)


def build_tokenizer(directory: Path, class_names: Sequence[str]) -> PreTrainedTokenizerBase:
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


def _new_clip(build: Build, tokenizer: PreTrainedTokenizerBase, side: int) -> CLIPModel:
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": build.width,
        "intermediate_size": 4 * build.width,
        "num_hidden_layers": build.layers,
        "num_attention_heads": 4,
        "projection_dim": build.projection,
    }
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**tower, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": _MOST_TOKENS}
    vision = {**tower, "image_size": side, "patch_size": 2}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=build.projection))


def _learn(clip: CLIPModel, images: Tensor, labels: Tensor, captions: BatchEncoding, epochs: int) -> None:
    """Contrastive training; all images with the same caption are its positives."""
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
