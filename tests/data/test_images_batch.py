from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from abkd.data.images import ImageCollator, load_images, prepare_images
from abkd.data.images.augmentation import HorizontalFlip, Mixup
from abkd.errors import DataError

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (8, 6, 9, 3), dtype=np.uint8)
LABELS = np.array([0, 3, 1, 1, 2, 0, 3, 2])


def dataset(labels=LABELS, **options):
    return prepare_images({"x": PIXELS} | ({} if labels is None else {"y": labels}), **options)


def batch_of(examples):
    return ImageCollator()(examples)["batch"]


class TestDataset:
    def test_images_of_the_wanted_size_are_untouched_and_have_three_channels(self):
        data = dataset()
        for index, pixels in enumerate(PIXELS):
            example = data[index]
            assert example["pixels"].dtype == torch.uint8
            assert np.array_equal(example["pixels"].permute(1, 2, 0), pixels)
            assert example["labels"] == [(LABELS[index], 1.0)]
            assert not example["is_padding"]
        grey = prepare_images(PIXELS[..., 0], size=(6, 9))[2]["pixels"]
        assert np.array_equal(grey, np.repeat(PIXELS[2, None, ..., 0], 3, axis=0))

    def test_what_it_knows(self):
        data = dataset()
        assert (data.name, data.size, data.labelled, data.num_classes) == ("train", (6, 9), True, 4)
        assert (data.class_names, data.dropped, data.truncated, data.indexed_by_epoch) == (None, {}, 0, False)
        assert prepare_images(data) is data
        unlabelled = dataset(None, name="held out")
        assert (unlabelled.name, unlabelled.labelled, unlabelled.num_classes) == ("held out", False, None)
        assert unlabelled[0]["labels"] == []
        assert prepare_images("digits").num_classes == 10

    def test_resizing_covers_and_cuts_the_middle(self):
        """Compared with PIL's own fit, which scales only the part that is kept."""
        for shape, size in (((40, 61), (16, 16)), ((61, 40), (16, 16)), ((12, 9), (24, 18)), ((30, 30), (10, 20))):
            ramp = np.add.outer(np.arange(shape[0]) * 2.0, np.arange(shape[1])).astype(np.uint8)
            picture = Image.fromarray(np.dstack([ramp, 255 - ramp, ramp]))
            found = prepare_images([picture], size=size)[0]["pixels"].permute(1, 2, 0).numpy().astype(int)
            scale = max(size[0] / shape[0], size[1] / shape[1])
            high, wide = size[0] / scale, size[1] / scale
            box = ((shape[1] - wide) / 2, (shape[0] - high) / 2, (shape[1] + wide) / 2, (shape[0] + high) / 2)
            expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC, box=box), dtype=int)
            assert np.abs(found - expected)[1:-1, 1:-1].max() <= 3, (shape, size)
        assert prepare_images([PIXELS[0]], size=3)[0]["pixels"].shape == (3, 3, 3)

    def test_the_fingerprint_sees_all_that_examples_are_made_of(self):
        kinds = [
            dataset(),
            dataset(None),
            dataset(size=4),
            dataset(augmentation=[HorizontalFlip()]),
            dataset(augmentation=[HorizontalFlip()], seed=1),
            dataset(augmentation=[HorizontalFlip(0.4)]),
        ]
        assert len({data.fingerprint for data in kinds}) == len(kinds)
        assert dataset(seed=3).fingerprint == dataset().fingerprint  # nothing is drawn
        assert dataset(name="other").fingerprint == dataset().fingerprint


class TestMixup:
    DATA = dataset(augmentation=[Mixup(alpha=1.0)], seed=3)

    def test_pixels_and_weights_are_those_of_two_images(self):
        """λ and the other image, found from the labels and the pixels, explain all of both."""
        seen = set()
        for epoch in range(6):
            for index in range(8):
                example = self.DATA[epoch, index]
                pixels, labels = example["pixels"].permute(1, 2, 0).numpy(), example["labels"]
                assert pixels.dtype == np.float32
                assert sum(weight for _, weight in labels) == pytest.approx(1.0)
                assert labels[0][0] == LABELS[index]
                if len(labels) == 1:
                    continue
                weight = labels[0][1]
                mixtures = weight * PIXELS[index] + (1 - weight) * PIXELS.astype(np.float64)
                distance = np.abs(mixtures - pixels).max(axis=(1, 2, 3))
                other = int(distance.argmin())
                assert distance[other] < 1e-3
                assert labels[1][0] == LABELS[other]
                seen.add(other)
        assert len(seen) > 5

    def test_one_row_where_both_are_of_one_class(self):
        data = dataset(np.zeros(8), augmentation=[Mixup()])
        assert [data[0, index]["labels"] for index in range(8)] == [[(0, 1.0)]] * 8

    def test_rows_of_a_batch(self):
        examples = [self.DATA[0, index] for index in range(8)]
        batch = batch_of(examples)
        pairs = [(image, label, weight) for image, each in enumerate(examples) for label, weight in each["labels"]]
        assert batch.student.rows.tolist() == [image for image, _, _ in pairs]
        assert batch.targets.tolist() == [label for _, label, _ in pairs]
        assert torch.equal(batch.weight, torch.tensor([weight for _, _, weight in pairs]))
        assert torch.equal(batch.sequence, batch.student.rows)
        assert len(batch) > 8
        summed = torch.zeros(8).index_add(0, batch.sequence, batch.weight)
        assert torch.allclose(summed, torch.ones(8))

    def test_without_labels_a_mixed_image_is_one_row(self):
        data = dataset(None, augmentation=[Mixup(1.0)], seed=3)
        batch = batch_of([data[0, index] for index in range(8)])
        assert batch.targets is None
        assert batch.weight.tolist() == [1.0] * 8
        assert batch.student.rows.tolist() == list(range(8))
        expected = [self.DATA[0, index]["pixels"] for index in range(8)]  # labels change no pixel
        assert torch.equal(batch.student.inputs["pixels"], torch.stack(expected))

    def test_mixed_and_unmixed_share_a_batch(self):
        data = dataset(augmentation=[Mixup(1.0, share=0.5)])
        examples = [data[0, index] for index in range(8)]
        kinds = {example["pixels"].dtype for example in examples}
        assert kinds == {torch.uint8, torch.float32}
        stacked = batch_of(examples).student.inputs["pixels"]
        assert stacked.dtype == torch.float32
        assert all(torch.equal(image, each["pixels"].float()) for image, each in zip(stacked, examples, strict=True))


class TestBatch:
    def test_of_labelled_images(self):
        data = dataset()
        batch = batch_of([data[5], data[1], data[5]])
        assert batch.student is batch.teacher
        assert torch.equal(batch.student.inputs["pixels"], torch.stack([data[index]["pixels"] for index in (5, 1, 5)]))
        assert batch.student.inputs["pixels"].dtype == torch.uint8
        assert batch.targets.tolist() == [0, 3, 0]
        assert batch.weight.tolist() == [1.0] * 3
        assert batch.origin.tolist() == [0] * 3
        for each in (batch.student.rows, batch.sequence):
            assert each.tolist() == [0, 1, 2]
        for each in (batch.student.rows, batch.sequence, batch.origin, batch.targets):
            assert each.dtype == torch.int64
        assert (batch.weight.dtype, batch.pretrain, batch.pretrain_targets) == (torch.float32, None, None)

    def test_of_unlabelled_images(self):
        data = dataset(None)
        batch = batch_of([data[0], data[1]])
        assert batch.targets is None
        assert len(batch) == 2
        assert batch.to("cpu").targets is None

    @pytest.mark.parametrize("labels", [LABELS, None])
    def test_stand_ins_change_nothing(self, labels):
        data = dataset(labels)
        real = [data[4], data[2]]
        filled = batch_of([data.padding_example(), real[0], data.padding_example(), real[1]])
        alone = batch_of(real)
        assert torch.equal(filled.student.inputs["pixels"], alone.student.inputs["pixels"])
        for name in ("targets", "weight", "sequence", "origin"):
            mine, theirs = getattr(filled, name), getattr(alone, name)
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)

    @pytest.mark.parametrize("labels", [LABELS, None])
    def test_of_stand_ins_alone(self, labels):
        data = dataset(labels)
        batch = batch_of([data.padding_example()] * 3)
        assert batch.student.inputs["pixels"].shape == (1, 3, 6, 9)
        assert batch.weight.tolist() == [0.0]
        assert batch.student.rows.tolist() == [0]
        assert (None if batch.targets is None else batch.targets.tolist()) == (None if labels is None else [0])

    def test_of_mixed_sorts(self):
        with pytest.raises(DataError, match="with and without labels"):
            batch_of([dataset()[0], dataset(None)[0]])


@pytest.mark.parametrize("source", ["arrays", "files", "table"])
def test_loader_workers_see_the_same(source, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [(Image.fromarray(pixels), int(label)) for pixels, label in zip(PIXELS, LABELS, strict=True)]
    if source == "files":
        for number, (picture, label) in enumerate(rows):
            (tmp_path / str(label)).mkdir(exist_ok=True)
            picture.save(tmp_path / str(label) / f"{number}.png")
    sources = {
        "arrays": lambda: {"x": PIXELS, "y": LABELS},
        "files": lambda: tmp_path,
        "table": lambda: datasets.Dataset.from_list([{"image": picture, "label": label} for picture, label in rows]),
    }
    data = prepare_images(load_images(sources[source]()), augmentation=[HorizontalFlip()])
    copied = pickle.loads(pickle.dumps(data))
    assert copied.fingerprint == data.fingerprint
    keys = [[(1, 0), (1, 5)], [(1, 7), (0, 3)]]
    loader = DataLoader(data, batch_sampler=keys, collate_fn=ImageCollator(), num_workers=2)
    for found, wanted in zip(loader, keys, strict=True):
        expected = batch_of([copied[key] for key in wanted])
        assert torch.equal(found["batch"].student.inputs["pixels"], expected.student.inputs["pixels"])
        assert torch.equal(found["batch"].targets, expected.targets)
