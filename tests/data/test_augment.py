from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from abkd.data.images import load_images, prepare_images
from abkd.data.images.augmentation import Augmentation, HorizontalFlip, Mixup, RandomCrop, RandomResizedCrop
from abkd.errors import ConfigError
from abkd.notation import parse, render

CHANCE = np.random.default_rng(0)
IMAGE = CHANCE.integers(1, 256, (9, 12, 3), dtype=np.uint8)  # nowhere black
STEPS = [RandomResizedCrop(), RandomCrop(2), HorizontalFlip(), Mixup(0.5, share=0.7)]


def draws(step: Augmentation, image: np.ndarray = IMAGE, count: int = 400) -> list[np.ndarray]:
    return [step(image, np.random.default_rng(seed)) for seed in range(count)]


def place(part: np.ndarray, whole: np.ndarray) -> tuple[int, int] | None:
    """The position of ``part`` in ``whole``."""
    for top in range(whole.shape[0] - part.shape[0] + 1):
        for left in range(whole.shape[1] - part.shape[1] + 1):
            if np.array_equal(whole[top : top + part.shape[0], left : left + part.shape[1]], part):
                return top, left
    return None


class TestSteps:
    def test_a_crop_is_every_part_of_the_padded_image(self):
        padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
        places = [place(part, padded) for part in draws(RandomCrop(2))]
        assert set(places) == {(top, left) for top in range(5) for left in range(5)}
        counts = np.unique(np.array(places), axis=0, return_counts=True)[1]
        assert counts.min() > 400 / 25 / 3

    def test_a_flip_is_as_frequent_as_wished(self):
        for probability in (0.25, 0.5, 1.0):
            images = draws(HorizontalFlip(probability), count=2000)
            flipped = [np.array_equal(image, IMAGE[:, ::-1]) for image in images]
            assert abs(np.mean(flipped) - probability) < 0.04
        kept = [image for image in draws(HorizontalFlip()) if not np.array_equal(image, IMAGE[:, ::-1])]
        assert all(np.array_equal(image, IMAGE) for image in kept)

    def test_a_resized_crop_has_the_wanted_areas_and_shapes(self):
        image = CHANCE.integers(0, 256, (80, 100, 1), dtype=np.uint8)
        parts = draws(RandomResizedCrop(scale=(0.2, 0.6), ratio=(0.5, 2.0)), image)
        areas = np.array([part.shape[0] * part.shape[1] for part in parts]) / image.size
        ratios = np.array([part.shape[1] / part.shape[0] for part in parts])
        assert areas.min() > 0.19
        assert areas.max() < 0.62
        assert 0.35 < areas.mean() < 0.42
        assert ratios.min() > 0.48
        assert ratios.max() < 2.1
        assert abs(np.log(ratios).mean()) < 0.1
        assert all(place(part, image) is not None for part in parts[:5])

    def test_where_no_part_has_the_shape_it_is_the_middle(self):
        tall = CHANCE.integers(0, 256, (100, 4, 3), dtype=np.uint8)
        for part in draws(RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.5, 1.0)), tall, 3):
            assert np.array_equal(part, tall[46:54])
        wide = tall.transpose(1, 0, 2)
        for part in draws(RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.5, 2.0)), wide, 3):
            assert np.array_equal(part, wide[:, 46:54])

    def test_mixup_draws_from_all_and_mixes_a_share(self):
        drawn = [Mixup(alpha=0.4, share=0.3).draw(np.random.default_rng(seed), 5) for seed in range(3000)]
        mixed = [pair for pair in drawn if pair is not None]
        assert abs(len(mixed) / 3000 - 0.3) < 0.03
        assert {other for other, _ in mixed} == set(range(5))
        weights = np.array([weight for _, weight in mixed])
        assert abs(weights.mean() - 0.5) < 0.04
        assert abs(weights.var() - 0.25 / (2 * 0.4 + 1)) < 0.02  # of Beta(α, α)
        assert np.array_equal(Mixup()(IMAGE, np.random.default_rng(0)), IMAGE)


@pytest.mark.parametrize("step", [*STEPS, RandomResizedCrop(scale=[0.5, 1], ratio=[1, 1])])  # type: ignore[arg-type]
def test_steps_are_values_in_the_notation(step):
    assert parse(render(step)) == step
    assert hash(parse(render(step))) == hash(step)
    assert parse(f"[{step!r}, HorizontalFlip()]") == [step, HorizontalFlip()]
    assert pickle.loads(pickle.dumps(step)) == step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RandomCrop(0)", "padding must be an integer from 1 to 16384, got 0"),
        ("RandomCrop(1000000000000)", "from 1 to 16384, got 1000000000000"),
        ("Mixup(1e308)", "at most 1e6"),
        ("RandomCrop(1.5)", "got 1.5"),
        ("HorizontalFlip(0)", r"probability must be in \(0, 1\], got 0"),
        ("HorizontalFlip(nan)", "got nan"),
        ("HorizontalFlip(True)", "got True"),
        ("RandomResizedCrop((0.5, 0.2))", r"scale must be \(min, max\), above 0, at most 1, got \(0.5, 0.2\)"),
        ("RandomResizedCrop((0.5, 1.2))", "at most 1"),
        ("RandomResizedCrop(0.5)", "got 0.5"),
        ("RandomResizedCrop(ratio=(0, 1))", r"ratio must be \(min, max\), above 0, got"),
        ("RandomResizedCrop(ratio=(1, inf))", "got"),
        ("Mixup(0)", "alpha must be above 0 and at most 1e6, got 0"),
        ("Mixup(inf)", "got inf"),
        ("Mixup(share=2)", r"share must be in \(0, 1\], got 2"),
    ],
)
def test_steps_that_cannot_be_meant(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_lists_of_steps_that_cannot_be_meant():
    with pytest.raises(ConfigError, match="one Mixup, got several"):
        prepare_images("digits", augmentation=[Mixup(), Mixup(0.3)])
    with pytest.raises(ConfigError, match=r"such as RandomCrop\(padding=4\), got 'RandomCrop'"):
        prepare_images("digits", augmentation=["RandomCrop"])  # type: ignore[list-item]


def digits(seed: int = 5, steps=tuple(STEPS)):
    return prepare_images(load_images("digits").take(range(40)), size=12, augmentation=steps, seed=seed)


def digest(examples) -> str:
    found = hashlib.sha256()
    for example in examples:
        found.update(example["pixels"].float().numpy().tobytes() + repr(example["labels"]).encode())
    return found.hexdigest()


class Keys:
    """A batch sampler that requests the examples of an epoch, in its own order."""

    def __init__(self, keys):
        self.keys = keys

    def __iter__(self):
        return iter([[key] for key in self.keys])

    def __len__(self):
        return len(self.keys)


def only(examples):
    return examples[0]


KEYS = [(epoch, index) for epoch in range(2) for index in range(40)]


class TestKey:
    def test_is_seed_epoch_and_index_alone_whoever_asks_and_in_which_order(self):
        dataset = digits()
        expected = [dataset[key] for key in KEYS]
        backwards = [digits()[key] for key in KEYS[::-1]][::-1]
        copied = pickle.loads(pickle.dumps(dataset))
        assert digest(backwards) == digest(expected) == digest(copied[key] for key in KEYS)
        np.random.default_rng(0).random(10)
        loader = DataLoader(dataset, batch_sampler=Keys(KEYS), collate_fn=only, num_workers=2)
        assert digest(loader) == digest(expected)

    def test_is_the_same_in_another_process(self):
        dataset = digits()
        code = "import test_augment as t; d = t.digits(); print(t.digest(d[key] for key in t.KEYS))"
        here = [*sys.path, __file__.rpartition("/")[0]]
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {here!r}; {code}"], capture_output=True, text=True
        )
        assert done.stdout.strip() == digest(dataset[key] for key in KEYS), done.stderr

    def test_every_part_of_it_counts(self):
        dataset, twin = digits(steps=[RandomCrop(4)]), load_images("digits").take([3] * 40)
        same = prepare_images(twin, size=12, augmentation=[RandomCrop(4)], seed=5)
        by_index = {digest([same[0, index]]) for index in range(40)}
        by_epoch = {digest([dataset[epoch, 3]]) for epoch in range(40)}
        by_seed = {digest([digits(seed, [RandomCrop(4)])[0, 3]]) for seed in range(40)}
        assert min(len(by_index), len(by_epoch), len(by_seed)) > 20

    def test_an_index_alone_is_the_image_as_it_is(self):
        assert digest(digits()[index] for index in range(40)) == digest(digits(steps=())[0, i] for i in range(40))
        assert digits().indexed_by_epoch
        assert not digits(steps=()).indexed_by_epoch


class Recorder(Augmentation):
    def __init__(self, before: bool):
        self.before_resizing, self.seen = before, []  # type: ignore[misc]

    def __call__(self, image, rng):
        self.seen.append(image.shape)
        return image[:4, :6] if self.before_resizing else image


def test_no_step_can_change_the_data():
    class Careless(Augmentation):
        def __call__(self, image, rng):
            image[:] = 0
            return image

    mine = IMAGE[None].copy()
    with pytest.raises(ValueError, match="read-only"):
        prepare_images(mine, augmentation=[Careless()])[0, 0]
    mine[:] = 1  # the owner still can


def test_who_sees_the_stored_image_and_who_the_resized_one():
    first, second = Recorder(before=True), Recorder(before=False)
    dataset = prepare_images([IMAGE], size=(5, 7), augmentation=[second, first])
    assert dataset[0, 0]["pixels"].shape == (3, 5, 7)
    assert first.seen == [(9, 12, 3)]
    assert second.seen == [(5, 7, 3)]
    whole = prepare_images([IMAGE], size=(9, 12), augmentation=[RandomResizedCrop((1.0, 1.0), (4 / 3, 4 / 3))])
    assert np.array_equal(whole[0, 0]["pixels"].permute(1, 2, 0), IMAGE)
