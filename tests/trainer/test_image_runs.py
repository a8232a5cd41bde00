"""Image runs: bit-exact resume in the middle of an epoch, splits, an unchanged teacher, errors."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from abkd import DistillConfig, DistillTrainer
from abkd.data import View
from abkd.errors import ConfigError, DataError, NonFiniteError, VocabularyError
from abkd.models.adapters import has_adapters
from abkd.models.vision import Classifier, ImageRows, check_classes, load_classifier
from abkd.tasks._image_checks import check_batches_of_one
from image_parts import (
    CHANCE,
    CLASSES,
    NAMES,
    Plain,
    cifar,
    image_teacher,
    image_trainer,
    pictures,
    plain,
    resnet,
    unlabelled,
    vit,
)
from training_parts import gap, weights

FLIP = "[RandomCrop(padding=1), HorizontalFlip()]"


@pytest.mark.parametrize(("size", "accumulated"), [(4, 2), (2, 4), (1, 8)])
def test_splits_do_not_change_the_step(tmp_path, size, accumulated):
    """Without batch statistics and batch axis, which legitimately depend on the other rows of a batch."""
    options = {"max_steps": 3, "augmentation": CHANCE}
    whole = image_trainer(tmp_path / "whole", per_device_train_batch_size=8, **options)
    whole.train()
    options |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    parts = image_trainer(tmp_path / "parts", **options)
    parts.train()
    assert gap(whole.model, parts.model) < 2e-5


def test_a_batch_axis_depends_on_the_batch(tmp_path):
    options = {"max_steps": 2, "divergence": "DIST()", "ce_weight": 0.0}
    whole = image_trainer(tmp_path / "whole", per_device_train_batch_size=8, **options)
    whole.train()
    parts = image_trainer(tmp_path / "parts", gradient_accumulation_steps=4, **options)
    parts.train()
    assert gap(whole.model, parts.model) > 1e-4


@pytest.mark.parametrize("divergence", ["AlphaBeta(0.8, 0.3)", "DIST()", "CLKD()", "Standardized(DKD())"])
def test_a_batch_of_one_gives_numbers(tmp_path, divergence):
    one = image_trainer(tmp_path, per_device_train_batch_size=1, divergence=divergence, augmentation=FLIP)
    one.train()
    assert all(torch.isfinite(weight).all() for weight in one.model.state_dict().values())


def test_the_teacher_stays_what_it_is(tmp_path):
    teach = image_teacher()
    before = weights(teach.model)
    modes: set[bool] = set()
    teach.model.body.register_forward_pre_hook(lambda module, _: modes.add(module.training))
    teach.model.train()
    run = image_trainer(tmp_path, teach=teach, eval_dataset=pictures(5, seed=1), eval_strategy="epoch")
    run.train()
    assert modes == {False}
    assert gap(before, teach.model) == 0.0
    assert not any(module.training for module in teach.model.modules())
    mine = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert not any(id(parameter) in mine for parameter in teach.model.parameters())


def test_evaluation_is_that_of_a_plain_computation(tmp_path):
    held_out = pictures(7, seed=2)
    run = image_trainer(tmp_path, eval_dataset=held_out, per_device_eval_batch_size=3)
    found = run.evaluate()
    pixels = torch.stack([torch.from_numpy(row["image"]) for row in held_out]).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([row["label"] for row in held_out])
    teach = image_teacher()
    mean, std = (torch.tensor(each)[:, None, None] for each in (teach.preparation.mean, teach.preparation.std))
    with torch.no_grad():
        z, y = plain(0).eval()(pixels), teach.model.eval()((pixels - mean) / std)
    log_q, log_p = z.log_softmax(-1), y.log_softmax(-1)
    expected = {
        "accuracy": (z.argmax(-1) == labels).float().mean(),
        "teacher_accuracy": (y.argmax(-1) == labels).float().mean(),
        "top1_agreement": (y.argmax(-1) == z.argmax(-1)).float().mean(),
        "cross_entropy": torch.nn.functional.cross_entropy(z, labels),
        "teacher_cross_entropy": torch.nn.functional.cross_entropy(y, labels),
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(-1).mean(),
    }
    for name, value in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-5), name


def test_mixed_images_have_the_mixed_cross_entropy(tmp_path):
    """A step on mixed images is the step that a plain loop makes of λ·CE(a) + (1-λ)·CE(b) + D."""
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "divergence": "ForwardKL()"}
    run = image_trainer(tmp_path, augmentation="[Mixup(alpha=1.0)]", **options)
    examples = [run.train_dataset[0, i] for i in range(12)]
    order = list(run._get_train_sampler())[:2]
    chosen = [examples[i] for _, i in order]
    run.train()
    model, teach = plain(0), image_teacher()
    pixels = torch.stack([example["pixels"] for example in chosen])
    z = model(pixels / 255)
    with torch.no_grad():
        p = teach.model.eval()(teach.preparation(pixels)).softmax(-1)
    loss = (p * (p.log() - z.log_softmax(-1))).sum(-1).mean()
    for row, example in zip(z, chosen, strict=True):
        for label, share in example["labels"]:
            loss = loss + 0.5 * share * -row.log_softmax(-1)[label] / 2
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for gradient, parameter, trained in zip(gradients, model.parameters(), run.model.parameters(), strict=True):
        expected = parameter - 0.5 * gradient * min(1.0, 1.0 / norm)  # clipped to norm 1
        torch.testing.assert_close(trained, expected, atol=1e-5, rtol=1e-4)


def test_steps_of_the_learning_rate_and_decay_on_everything(tmp_path):
    run = image_trainer(
        tmp_path, max_steps=12, lr_milestones=[1.0, 1.5], lr_decay=0.1, decay_all_parameters=True, weight_decay=0.01
    )
    run.train()
    rates = [record["learning_rate"] for record in run.state.log_history if "learning_rate" in record]
    assert rates == pytest.approx([3e-3] * 6 + [3e-4] * 3 + [3e-5] * 3)
    assert all(group["weight_decay"] == 0.01 for group in run.optimizer.param_groups if group["params"])
    usual = image_trainer(tmp_path / "usual", weight_decay=0.01)
    usual.create_optimizer()
    assert {group["weight_decay"] for group in usual.optimizer.param_groups} == {0.0, 0.01}


def test_labels_are_not_needed(tmp_path):
    run = image_trainer(tmp_path, data=unlabelled(), ce_weight=0.0, eval_dataset=unlabelled(4), eval_strategy="epoch")
    run.train()
    found = run.evaluate()
    assert "eval_accuracy" not in found
    assert found["eval_forward_kl"] > 0
    with pytest.raises(ConfigError, match="no labels, which the cross-entropy needs"):
        image_trainer(tmp_path / "b", data=unlabelled(), ce_weight=0.5)
    with pytest.raises(ConfigError, match="use another divergence"):
        image_trainer(tmp_path / "c", data=unlabelled(), ce_weight=0.0, divergence="DKD()")
    with pytest.raises(DataError, match="label"):
        image_trainer(tmp_path / "d", data=[*unlabelled(3), *pictures(3)])


def test_labels_alone_need_no_teacher(tmp_path):
    options = {"ce_weight": 1.0, "kd_weight": 0.0, "max_steps": 2, "use_cpu": True}
    run = DistillTrainer(
        plain(0),
        None,
        DistillConfig(output_dir=str(tmp_path), task="image-classification", **options),
        train_dataset=pictures(),
        eval_dataset=pictures(5, seed=1),
    )
    run.train()
    assert 0.0 <= run.evaluate()["eval_accuracy"] <= 1.0


def test_in_bfloat16_it_learns_the_same(tmp_path):
    full = image_trainer(tmp_path / "full", cifar(0), max_steps=4)
    full.train()
    half = image_trainer(tmp_path / "half", cifar(0), max_steps=4, bf16=True)
    half.train()
    losses = [[r["loss"] for r in run.state.log_history if "loss" in r] for run in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("family", [plain, vit, resnet, cifar])
def test_the_student_is_saved_as_it_came(tmp_path, family):
    run = image_trainer(tmp_path, family(0))
    run.train()
    run.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    if family is not vit:  # which transformers writes under the names of older versions
        assert saved.keys() == family(1).state_dict().keys()
    if family in (vit, resnet):
        again = load_classifier(str(tmp_path), what="model_name_or_path")
        assert gap(again.model, run.model) == 0.0
        assert again.preparation == run.models.student.classifier.preparation


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(VocabularyError, match="classes"):
        image_trainer(tmp_path / "a", data=[{**row, "label": row["label"] % 3} for row in pictures()], teach=wide())
    with pytest.raises(ConfigError, match="the 3 classes of the student, got 4"):
        image_trainer(tmp_path / "b", narrow(), teach=narrow(1))
    model = plain(0)
    with pytest.raises(ConfigError, match="share weights"):
        image_trainer(tmp_path / "c", model, teach=model)
    with pytest.raises(ConfigError, match="group_by_length does not apply to the task"):
        image_trainer(tmp_path / "d", group_by_length=True)
    with pytest.raises(ConfigError, match="lr_milestones must be increasing epochs"):
        image_trainer(tmp_path / "e", lr_milestones=[3, 2])


def wide() -> Classifier:
    model = plain(7)
    model.fc = torch.nn.Linear(24, CLASSES + 1)
    return Classifier(model)


def narrow(seed: int = 0) -> torch.nn.Module:
    model = plain(seed)
    model.fc = torch.nn.Linear(24, 3)
    return model


def test_a_teacher_that_says_nan_ends_the_run(tmp_path):
    teach = image_teacher()
    with torch.no_grad():
        teach.model.fc.bias[0] = torch.nan
    run = image_trainer(tmp_path, teach=teach, save_strategy="steps", save_steps=4)
    with pytest.raises(Exception, match="teacher") as caught:
        run.train()
    assert getattr(caught.value, "exit_code", None) == 3
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_teacher_is_scored_before_the_first_step(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="abkd"):
        image_trainer(tmp_path, eval_dataset=pictures(10, seed=1), max_steps=1).train()
    assert "accuracy of the teacher on 10 held-out images" in caplog.text


def test_rows_are_the_models_own_logits():
    """Preprocessed by hand: the teacher has its own preprocessing."""
    teach = image_teacher()
    teach.model.eval()
    image = pictures(1)[0]["image"]
    ours = ImageRows(teach)._logits(torch.from_numpy(image).permute(2, 0, 1)[None])
    by_hand = (image / 255 - np.array(teach.preparation.mean)) / np.array(teach.preparation.std)
    theirs = teach.model(torch.from_numpy(by_hand).float().permute(2, 0, 1)[None])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_ensembles_teach_images(tmp_path):
    run = image_trainer(tmp_path, teach=[image_teacher(1), image_teacher(2)], teacher="Ensemble()", max_steps=2)
    run.train()
    assert len(run.models.teacher.models) == 2
    with pytest.raises(ConfigError, match="takes 1 model, got 2"):
        image_trainer(tmp_path / "b", teach=[image_teacher(1), image_teacher(2)])


def test_metrics_are_written(tmp_path):
    image_trainer(tmp_path, eval_dataset=pictures(5, seed=1), eval_strategy="steps", eval_steps=3).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [0, 3, 6]


def test_held_out_images_have_the_classes_of_the_training(tmp_path):
    """By name, in any order and any subset; other names are refused."""
    held_out = pictures(8, seed=1)
    whole = image_trainer(tmp_path / "a", data=named(pictures(), NAMES), eval_dataset=named(held_out, NAMES))
    turned = [{**row, "label": 4 - row["label"]} for row in held_out]
    other = image_trainer(tmp_path / "b", data=named(pictures(), NAMES), eval_dataset=named(turned, NAMES[::-1]))
    assert whole.evaluate()["eval_accuracy"] == other.evaluate()["eval_accuracy"]
    assert whole.evaluate()["eval_loss"] == other.evaluate()["eval_loss"]
    part = [{**row, "label": row["label"] - 1} for row in held_out if row["label"]]
    image_trainer(tmp_path / "c", data=named(pictures(), NAMES), eval_dataset=named(part, NAMES[1:])).evaluate()
    with pytest.raises(DataError, match="has a class 'fox' that the training images do not have"):
        image_trainer(tmp_path / "d", data=named(pictures(), NAMES), eval_dataset=named(part, ("fox", *NAMES[2:])))
    with pytest.raises(ConfigError, match="the 5 classes of the student, got 9"):
        image_trainer(tmp_path / "e", eval_dataset=[{**row, "label": 9} for row in held_out])
    with pytest.raises(ConfigError, match="no labels, which the cross-entropy needs"):
        image_trainer(tmp_path / "f", eval_dataset=unlabelled(4))


def named(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """The same images as arrays, with the names of the classes."""
    images, labels = (np.stack([np.asarray(row[key]) for row in rows]) for key in ("image", "label"))
    return {"images": images, "labels": labels, "classes": list(names)}


def test_held_out_images_are_brought_to_the_size_of_the_training(tmp_path):
    run = image_trainer(tmp_path, eval_dataset=pictures(4, side=16))
    assert run.eval_dataset[0]["pixels"].shape == run.train_dataset[0]["pixels"].shape


def test_numbered_folders_in_another_order_are_noticed():
    numbers = tuple(map(str, range(12)))
    students = [
        Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 12)), class_names=numbers)
    ] * 2
    check_classes(*students, numbers)
    with pytest.raises(VocabularyError, match="another order"):
        check_classes(*students, sorted(numbers))


def test_a_batch_axis_sees_each_image_once(tmp_path):
    with pytest.raises(ConfigError, match="is in it twice"):
        image_trainer(tmp_path, divergence="DIST()", augmentation="[Mixup()]")
    image_trainer(tmp_path, divergence="DIST()", augmentation="[Mixup()]", data=unlabelled(), ce_weight=0.0).train()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize(
    ("student", "layers", "head"),
    [(lambda: vit(0), ["query", "q_proj"], "classifier"), ("cifar:resnet8", r".*layer1\.0\.conv1", "fc")],
)
def test_adapters_leave_the_head_to_be_trained_and_are_merged_when_saved(tmp_path, student, layers, head):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=layers, task_type=None)
    model = student if isinstance(student, str) else student()
    run = image_trainer(tmp_path, model, peft_config=config, learning_rate=1e-2, save_strategy="steps", save_steps=2)
    before = weights(run.model)
    run.train()
    moved = [name for name, value in weights(run.model).items() if head in name and (value != before[name]).any()]
    assert moved
    run.save_model()
    rows, again = run.models.student, ImageRows(load_classifier(str(tmp_path)))
    view = View(inputs={"pixels": torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)}, rows=torch.arange(4))
    for each in (rows, again):
        each.model.eval()
    torch.testing.assert_close(again(view).logits(slice(None)), rows(view).logits(slice(None)), rtol=1e-4, atol=1e-5)
    assert has_adapters(rows.model)  # what was trained is as it was
    assert (tmp_path / "checkpoint-6" / "adapter_model.safetensors").is_file()


def test_a_student_of_nans_is_named_also_without_a_teacher(tmp_path):
    model = plain(0)
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    options = {"ce_weight": 1.0, "kd_weight": 0.0, "max_steps": 2, "use_cpu": True}
    args = DistillConfig(output_dir=str(tmp_path), task="image-classification", **options)
    with pytest.raises(NonFiniteError, match=r"the student's fc\.bias"):
        DistillTrainer(model, None, args, train_dataset=pictures()).train()


def test_logged_means_weigh_mixed_images_once(tmp_path):
    options = {"augmentation": "[Mixup(alpha=1.0)]", "max_steps": 1, "ce_weight": 0.0, "divergence": "ForwardKL()"}
    run = image_trainer(tmp_path, per_device_train_batch_size=12, **options)
    run.train()
    first = next(record for record in run.state.log_history if "loss" in record)
    assert first["divergence"] == pytest.approx(first["loss"], rel=1e-3)


def test_a_run_without_a_whole_batch_is_refused(tmp_path):
    run = image_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=64)
    with pytest.raises(ConfigError, match="leaves nothing to train on"):
        run.train()


def normed_last(seed: int = 0) -> torch.nn.Module:
    """Batch normalisation of one value per channel: a batch of one image has no variance."""
    torch.manual_seed(seed)
    body = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.BatchNorm1d(3))
    return torch.nn.Sequential(*body, torch.nn.Linear(3, CLASSES))


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (13, {"per_device_train_batch_size": 4, "max_steps": 4}),
        (13, {"per_device_train_batch_size": 4, "max_steps": 1, "gradient_accumulation_steps": 4}),
        (12, {"per_device_train_batch_size": 1, "dataloader_drop_last": True}),
    ],
)
def test_a_batch_of_one_that_cannot_be_normalised_is_known_before_the_first_step(tmp_path, count, options):
    with pytest.raises(ConfigError, match=r"cannot be trained on one: set .*another per_device_train_batch_size"):
        image_trainer(tmp_path, normed_last(), data=pictures(count), **options)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (13, {"dataloader_drop_last": True}),
        (13, {"max_steps": 3}),
        (12, {}),
        (14, {}),
    ],
)
def test_other_batches_of_a_normalised_student_are_trained_and_evaluated_on(tmp_path, count, options):
    options = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 1, "max_steps": 5, **options}
    run = image_trainer(tmp_path, normed_last(), data=pictures(count), eval_dataset=pictures(3), **options)
    run.train()
    assert run.evaluate()["eval_accuracy"] >= 0


class Counted(list):
    size = (8, 8)


@pytest.mark.parametrize(("count", "refused"), [(16, False), (12, True), (13, True), (14, False)])
def test_of_two_processes_one_may_be_left_with_one_image_or_with_an_empty_one(count, refused):
    """Of the eight images of a step, the first process gets four, the second the rest."""
    args: Any = SimpleNamespace(train_batch_size=4, world_size=2, max_steps=-1, gradient_accumulation_steps=1)
    args.dataloader_drop_last, data = False, Counted(range(count))
    student = ImageRows(Classifier(normed_last()))
    with pytest.raises(ConfigError, match="in batches of 8") if refused else nullcontext():
        check_batches_of_one(data, student, args)  # type: ignore[arg-type]


def test_a_student_without_anything_to_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the Plain has nothing to train: all its \d+ parameters are frozen"):
        image_trainer(tmp_path, plain(0).requires_grad_(False))
    empty = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((1, CLASSES)), torch.nn.Flatten(2), Mean())
    with pytest.raises(ConfigError, match="has nothing to train: it has no parameters"):
        image_trainer(tmp_path, empty)


def test_complex_weights_are_refused(tmp_path):
    model = plain(0)
    model.phase = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match=r"the Plain has complex weights \(phase\), .* as pairs of real numbers"):
        image_trainer(tmp_path, model)


def test_rows_that_cannot_be_sent_to_a_loader_are_refused(tmp_path):
    class Local(torch.utils.data.Dataset[Any]):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return np.full((8, 8, 3), index, dtype=np.uint8), index % CLASSES

    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}
    made = image_trainer(tmp_path, plain(0), data=Local(), **options)
    with pytest.raises(ConfigError, match=r"cannot be pickled for the 1 workers .* by spawn .*at the top level of a"):
        made.train()


def test_a_student_whose_logits_are_cut_off_its_weights_is_refused(tmp_path):
    class Detached(Plain):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ConfigError, match="the logits of the Detached depend on none of its trainable parameters"):
        image_trainer(tmp_path, Detached())


def trained_and_resumed(path, student):
    """The run, whose second half gives the same weights again."""
    options = {"save_strategy": "steps", "save_steps": 3}
    torch.manual_seed(0)
    run = image_trainer(path, student(), **options)
    run.train()
    resumed = image_trainer(path, student(), **options)
    resumed.train(resume_from_checkpoint=str(path / "checkpoint-3"))
    assert gap(run.model, resumed.model) == 0.0
    return run


def test_layers_that_share_a_weight_are_saved_and_resumed(tmp_path):
    class Shared(Plain):
        def __init__(self):
            super().__init__()
            self.again = self.fc

    run = trained_and_resumed(tmp_path, Shared)
    run.save_model(str(tmp_path / "whole"))
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    assert torch.equal(saved["again.weight"], saved["fc.weight"])


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(1)


class Turned(Plain):
    """With weights that are not contiguous."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(6, CLASSES).t())
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return super().forward(x) * self.scale.mean(-1)


def test_weights_in_another_order_of_memory_are_saved_and_resumed(tmp_path):
    run = trained_and_resumed(tmp_path, Turned)
    assert not run.model.scale.is_contiguous()  # what is trained stays as it is
    run.save_model()
    assert gap(load_file(tmp_path / "model.safetensors"), run.model) == 0.0


def test_hooks_of_a_teacher_run_as_when_it_is_called(tmp_path):
    def brighter(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (2 * inputs[0],)

    hooked = plain(3)
    hooked.register_forward_pre_hook(brighter)
    hooked.register_forward_hook(lambda _, __, logits: 5 * logits)

    class ByHand(Plain):
        def forward(self, x):
            return 5 * super().forward(2 * x)

    torch.manual_seed(3)
    other = ByHand()
    found = [
        image_trainer(tmp_path / str(i), teach=each, eval_dataset=pictures(5)).evaluate()
        for i, each in enumerate((hooked, other, plain(3)))
    ]
    assert found[0]["eval_forward_kl"] == found[1]["eval_forward_kl"] != found[2]["eval_forward_kl"]


@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"]
)
def test_hooks_of_a_student_are_refused(register, tmp_path):
    model = plain(0)
    getattr(model, register)(lambda *_: None)
    with pytest.raises(ConfigError, match=r"the Plain has hooks on itself .* register them on its layers"):
        image_trainer(tmp_path, model)
    assert not list(tmp_path.iterdir())


class Versioned(Plain):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def buffered(value: torch.Tensor) -> Plain:
    model = plain(0)
    model.register_buffer("mask", value)
    return model


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.jit.script(plain(0)), "is TorchScript, which cannot be trained here"),
        (Versioned, r"a dict in its state \(_extra_state\): remove get_extra_state"),
        (lambda: buffered(torch.ones(1, 1).expand(3, 4)), r"whose elements share memory, .* \(mask\): use its clone"),
        (lambda: buffered(torch.eye(3).to_sparse()), r"not dense \(mask\): use its to_dense"),
    ],
    ids=["scripted", "extra state", "expanded", "sparse"],
)
def test_a_student_that_could_not_be_saved_is_refused(make, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        image_trainer(tmp_path, make())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_teacher_in_torchscript_teaches_as_the_module_does(tmp_path):
    found = [
        image_trainer(tmp_path / str(i), teach=each, eval_dataset=pictures(5)).evaluate()["eval_forward_kl"]
        for i, each in enumerate((plain(3), torch.jit.script(plain(3))))
    ]
    assert found[0] == pytest.approx(found[1])


def test_a_module_without_an_eval_mode_is_refused(tmp_path):
    class Exported(Plain):
        def train(self, mode=True):
            raise NotImplementedError("Calling eval() is not supported yet.")

    with pytest.raises(ConfigError, match="the Exported has no eval mode, as it was made by torch"):
        image_trainer(tmp_path, teach=Exported())


def test_other_images_are_evaluated_on_in_any_form(tmp_path):
    run = image_trainer(tmp_path, data=named(pictures(), NAMES), eval_dataset=named(pictures(8, seed=1), NAMES))
    turned = [{**row, "label": 4 - row["label"]} for row in pictures(8, seed=1)]
    own, other = run.evaluate(), run.evaluate(named(turned, NAMES[::-1]))
    assert (own["eval_accuracy"], own["eval_loss"]) == (other["eval_accuracy"], other["eval_loss"])
