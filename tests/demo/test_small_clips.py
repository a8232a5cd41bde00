"""The small CLIPs train properly, and a student without labels gets close to the teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from abkd import AlphaBeta, divergence_loss
from abkd.data.images import base_and_new, load_images, split_images
from abkd.demo.clip import CAPTION, Build, build_small, build_tokenizer, train_clip
from abkd.models.base_to_new import columns, metrics
from abkd.models.clip import ZeroShot, class_features, load_clip, load_clip_pair
from abkd.models.loading import load_tokenizer

DIGITS = "zero one two three four five six seven eight nine".split()


def pixels_of(images):
    """uint8 [N, 3, 8, 8]."""
    scans = np.stack([images.image(index) for index in range(len(images))])
    return torch.from_numpy(scans).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def logits_of(classifier, pixels):
    with torch.no_grad():
        return classifier.model.eval()(classifier.preparation(pixels))


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).float().mean().item()


def zero_shot_accuracy(directory, images):
    """Accuracies of the CLIP in a directory, before distillation."""
    clip, tokenizer = load_clip(str(directory), what=""), load_tokenizer(str(directory), what="")
    model = ZeroShot(clip, class_features(clip, tokenizer, DIGITS, CAPTION), DIGITS).eval()
    teacher, _ = load_clip_pair(str(directory), str(directory), DIGITS, template=CAPTION, prompt_depth=0)
    return accuracy(logits_of(teacher._replace(model=model), pixels_of(images)), torch.from_numpy(images.labels))


def distil(student, teacher, pixels, *, epochs, divergence, rate=3e-3, batch=32):
    """A plain training loop without labels."""
    wanted, seen = logits_of(teacher, pixels), student.preparation(pixels)
    learning = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate)
    for _ in range(epochs):
        student.model.train()
        for some in torch.randperm(len(pixels)).split(batch):
            divergence_loss(student.model(seen[some]), wanted[some], divergence).backward()
            optimizer.step()
            optimizer.zero_grad()


def agreement(student, teacher, pixels):
    return accuracy(logits_of(student, pixels), logits_of(teacher, pixels).argmax(-1))


def test_tokenizer_is_of_clips_kind(tmp_path):
    build_tokenizer(tmp_path, DIGITS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("A photo of the digit SEVEN.")["input_ids"]
    tokens = ["<|startoftext|>", "a</w>", "photo</w>", "of</w>", "the</w>", "digit</w>", "seven</w>", ".</w>"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*tokens, "<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == len(tokenizer) - 1 == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("a zebra 42!")["input_ids"][1:-1]).split() == ["a", "zebra", "4", "2", "!"]


def test_distillation_without_labels_comes_near_the_teacher(tmp_path):
    train, held_out = split_images(load_images("digits"), 0.2, 0)
    pixels, labels = pixels_of(train), torch.from_numpy(train.labels)
    for name, build in (("teacher", Build(48, 1, 32, 8)), ("student", Build(32, 1, 16, 40, 200))):
        train_clip(tmp_path / name, build, pixels, labels, DIGITS)
    torch.manual_seed(0)
    paths = str(tmp_path / "teacher"), str(tmp_path / "student")
    teacher, student = load_clip_pair(*paths, DIGITS, template=CAPTION, prompt_length=4, prompt_depth=1)
    unseen, truth = pixels_of(held_out), torch.from_numpy(held_out.labels)
    assert accuracy(logits_of(teacher, unseen), truth) > 0.8  # chance: 0.1
    before = agreement(student, teacher, unseen)
    own = zero_shot_accuracy(tmp_path / "student", held_out)
    distil(student, teacher, pixels, epochs=8, divergence=AlphaBeta(0.8, 0.4))
    after = agreement(student, teacher, unseen)
    assert before < 0.4 < 0.75 < after
    assert accuracy(logits_of(student, unseen), truth) > own + 0.05
    base, _ = base_and_new(DIGITS)
    found = columns(logits_of(student, unseen), truth, base)
    scores = metrics({name: column.sum().item() for name, column in found.items()})
    assert scores["base_accuracy"] > 0.8
    assert scores["new_accuracy"] > 0.8


@pytest.mark.long
def test_the_small_clips_of_the_demo(tmp_path):
    drawn = torch.get_rng_state()
    small = build_small(tmp_path)
    assert torch.equal(torch.get_rng_state(), drawn)
    train, held_out = load_images(small.train_file), load_images(small.held_out_file)
    assert train.class_names == held_out.class_names == tuple(DIGITS)
    assert len(train) + len(held_out) == 1797
    assert not {each.tobytes() for each in train.digests} & {each.tobytes() for each in held_out.digests}
    assert zero_shot_accuracy(small.teacher, held_out) > 0.94
    assert 0.4 < zero_shot_accuracy(small.student, held_out) < 0.85
