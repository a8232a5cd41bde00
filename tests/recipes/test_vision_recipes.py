"""The recipes for images: the settings of the papers' tables, and a run of each on generated images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from abkd import AlphaBeta, ForwardKL, ReverseKL, divergence_loss
from abkd.cli import app
from abkd.demo.clip import Build, train_clip
from abkd.divergences import DKD, Divergence, Standardized, TransformedTeacher
from abkd.errors import ConfigError
from abkd.models import cifar
from abkd.recipe import Recipe, load, shipped
from abkd.trainer import DistillTrainer

CIFAR = [name for name in shipped() if name.startswith("cifar100/")]
CLIP = [name for name in shipped() if name.startswith("clip/")]
METHODS = ("abkd", "abdkd", "ablsd", "abttm")

# ABKD (arXiv 2505.04560), Table 4: (α, β) of ABKD, ABDKD, ABLSD, ABTTM.
TABLE_4 = {
    "wrn_40_2_wrn_16_2": ((0.6, 0.5), (0.8, 0.4), (0.9, 0.1), (0.8, 0.3)),
    "wrn_40_2_wrn_40_1": ((0.9, 0.2), (1.0, 0.2), (0.8, 0.4), (1.0, 0.1)),
    "resnet56_resnet20": ((0.8, 0.3), (1.0, 0.2), (0.9, 0.3), (0.7, 0.5)),
    "resnet110_resnet20": ((0.8, 0.3), (0.8, 0.3), (1.2, -0.1), (0.9, 0.2)),
    "resnet110_resnet32": ((0.7, 0.4), (0.9, 0.3), (0.9, 0.2), (0.8, 0.3)),
    "resnet32x4_resnet8x4": ((0.5, 0.5), (0.8, 0.3), (1.2, -0.2), (0.8, 0.3)),
    "vgg13_vgg8": ((0.9, 0.2), (0.7, 0.4), (1.0, 0.2), (0.7, 0.5)),
    "resnet110_resnet44": ((0.8, 0.3), (0.8, 0.3), (1.0, 0.2), (0.8, 0.2)),
}
# Table 6.
TABLE_6 = {
    "imagenet": (0.5, 0.5), "caltech101": (0.8, 0.2), "oxford_pets": (0.8, 0.4), "stanford_cars": (0.6, 0.4),
    "oxford_flowers": (0.9, 0.1), "food101": (0.5, 0.5), "fgvc_aircraft": (0.6, 0.5), "sun397": (0.8, 0.2),
    "dtd": (1.0, 0.2), "eurosat": (0.6, 0.5), "ucf101": (0.8, 0.2),
}  # fmt: skip
# DKD's configurations (None: its default), and Table 8 of TTM: power and weight.
OTHERS = {"wrn_40_2_wrn_16_2": 6.0, "wrn_40_2_wrn_40_1": 6.0, "vgg13_vgg8": 6.0, "resnet32x4_resnet8x4": 8.0}
SOFTENED = {
    "wrn_40_2_wrn_16_2": (0.1, 101.0), "wrn_40_2_wrn_40_1": (0.1, 76.0), "resnet56_resnet20": (0.3, 7.0),
    "resnet110_resnet20": (0.2, 8.0), "resnet110_resnet32": (0.1, 33.0), "resnet110_resnet44": (0.1, 33.0),
    "resnet32x4_resnet8x4": (0.1, 100.0), "vgg13_vgg8": (0.1, 45.0),
}  # fmt: skip
WARMED_UP = "stages((20.0, anneal(0.0, 1.0, shape='linear')), (220.0, 1.0))"
PROTOCOL = {
    "task": "image-classification", "num_train_epochs": 240, "per_device_train_batch_size": 64, "optim": "sgd",
    "optim_args": "momentum=0.9", "learning_rate": 0.05, "lr_milestones": [150, 180, 210], "warmup_steps": 0,
    "weight_decay": 5e-4, "decay_all_parameters": True, "max_grad_norm": 0, "dataloader_drop_last": True,
}  # fmt: skip


def _inside(divergence: Any) -> Divergence:
    """The divergence within the transform."""
    return getattr(divergence, "divergence", divergence)


def _loss(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that defines its loss."""
    names = ("divergence", "ce_weight", "kd_weight", "kd_temperature", "scale_by_temperature_squared")
    return {name: recipe.config[name] for name in names if name in recipe.config}


# ---- settings


def test_there_is_a_recipe_for_every_entry_of_the_tables() -> None:
    base = ("clkd", "dist", "dkd", "kd", "lsd", "reverse_kl", "ttm", "wttm")
    wanted = {f"cifar100/{pair}_{method}" for pair in TABLE_4 for method in METHODS}
    wanted |= {f"cifar100/resnet56_resnet20_{method}" for method in base} | {"cifar100/teacher"}
    assert set(CIFAR) >= wanted  # other methods have tests of their own
    assert set(CLIP) == {f"clip/base_to_new_{name}" for name in TABLE_6}


@pytest.mark.parametrize("pair", TABLE_4)
def test_the_four_losses_of_a_pair(pair: str) -> None:
    recipes = [load(f"cifar100/{pair}_{method}") for method in METHODS]
    losses = [_loss(recipe) for recipe in recipes]
    points = [AlphaBeta(*point) for point in TABLE_4[pair]]
    assert [_inside(loss["divergence"]) for loss in losses] == points
    plain, label_apart, standardised, softened = losses
    power, weight = SOFTENED[pair]
    squared = {"kd_temperature": 4.0, "scale_by_temperature_squared": True}
    assert plain == {"divergence": points[0], "ce_weight": 1.0, "kd_weight": 32.0, "kd_temperature": 4.0}
    assert repr(label_apart.pop("kd_weight")) == WARMED_UP
    dkd = DKD(points[1], nckd_weight=OTHERS.get(pair, 2.0))
    assert label_apart == {"divergence": dkd, "ce_weight": 1.0, **squared}
    assert standardised == {"divergence": Standardized(points[2], 2.0), "ce_weight": 0.1, "kd_weight": 9 * 2.0**2}
    assert softened == {"divergence": TransformedTeacher(points[3], power), "ce_weight": 1.0, "kd_weight": weight}
    teacher, student = (recipes[0].teacher_model_name_or_path, recipes[0].model_name_or_path)
    assert f"{teacher}_{student}".replace("cifar:", "") == pair


@pytest.mark.parametrize(("ours", "base"), [("abdkd", "dkd"), ("ablsd", "lsd"), ("abttm", "ttm")])
def test_at_one_and_zero_it_is_the_base_method(ours: str, base: str) -> None:
    variant, plain = (load(f"cifar100/resnet56_resnet20_{method}") for method in (ours, base))
    assert _inside(plain.config["divergence"]) == ForwardKL()
    outside = dataclasses.replace(variant.config["divergence"], divergence=ForwardKL())
    assert {**variant.config, "divergence": outside} == dict(plain.config)
    assert dataclasses.replace(variant, config={}, output_dir="") == dataclasses.replace(
        plain, config={}, output_dir=""
    )


def test_abkd_at_one_and_zero_is_kd_and_at_zero_and_one_reverse_kl() -> None:
    """The weight 32 without T² is the weight 2 with it."""
    z_student, z_teacher = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(recipe: Recipe, divergence: Divergence) -> float:
        objective = recipe.objective()
        squared = objective.scale_by_temperature_squared
        value = divergence_loss(
            z_student, z_teacher, divergence, temperature=objective.temperature, scale_by_temperature_squared=squared
        )
        return float(objective.kd_weight * value)  # type: ignore[operator]  # no schedule

    abkd, kd, reverse = (load(f"cifar100/resnet56_resnet20_{method}") for method in ("abkd", "kd", "reverse_kl"))
    assert loss(abkd, AlphaBeta(1.0, 0.0)) == pytest.approx(loss(kd, kd.config["divergence"]), rel=1e-12)
    assert loss(abkd, AlphaBeta(0.0, 1.0)) == pytest.approx(loss(reverse, ReverseKL()), rel=1e-12)


@pytest.mark.parametrize("name", CIFAR)
def test_one_protocol_for_the_whole_table(name: str) -> None:
    recipe = load(name)
    assert {key: recipe.config[key] for key in PROTOCOL} == PROTOCOL
    assert repr(recipe.config["augmentation"]) == "[RandomCrop(padding=4), HorizontalFlip(probability=0.5)]"
    assert recipe.output_dir == name.removeprefix("cifar100/")
    others = {key for key in recipe.config if key not in load("cifar100/teacher").config}
    assert others <= {
        "divergence",
        "terms",
        "kd_temperature",
        "scale_by_temperature_squared",
        "teacher_model_init_kwargs",
    }


@pytest.mark.parametrize("name", CLIP)
def test_a_data_set_of_clip(name: str) -> None:
    recipe, title = load(name), name.removeprefix("clip/base_to_new_")
    assert recipe.config["divergence"] == AlphaBeta(*TABLE_6[title])
    assert recipe.config["kd_weight"] in (100, 200, 300, 500, 1000, 2000, 3000)  # the paper's grid
    assert recipe.distill_config().objective().at(0.0)[0].ce_weight == 0
    assert (recipe.config["learning_rate"], recipe.config["num_train_epochs"]) == (0.005, 20)
    assert recipe.config["unlabelled_classes"] == "all"


@pytest.mark.parametrize("name", [*CIFAR, *CLIP])
def test_it_is_called_as_in_the_source_tree_too_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(f"recipes/{name}.yaml") == load(f"{name}.yaml") == load(name)


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("recipes/cifar100/teacher.yaml")
    own.parent.mkdir(parents=True)
    own.write_text(shipped()["cifar100/teacher"].read_text().replace("output_dir: teacher", "output_dir: mine"))
    assert load(own).output_dir == "mine"
    with pytest.raises(ConfigError, match=r"no recipe file 'teacher.yaml'.*\d+ like cifar100/.*, 11 like clip/"):
        load("teacher.yaml")


# ---- runs


@pytest.fixture
def abkd(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out + said.err

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of noise, and the names of 100 classes."""
    file = tmp_path_factory.mktemp("pictures") / "cifar100.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    names = np.array([f"thing {label}" for label in range(100)])
    np.savez(file, x_train=pixels, y_train=np.arange(88, 100), x_test=pixels, y_test=np.arange(12), classes=names)
    return file


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Callable[[str], Path]:
    """Random networks with matching batch statistics, in the files that RepDistiller writes."""
    folder = tmp_path_factory.mktemp("teachers")

    def of(name: str) -> Path:
        file = folder / f"{name}.pth"
        if not file.is_file():
            torch.manual_seed(1)
            network = cifar.create(name)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
            pixels = torch.from_numpy(np.load(pictures)["x_train"][:4]).permute(0, 3, 1, 2) / 255
            with torch.no_grad():
                network.train()(pixels)
            torch.save({"epoch": 240, "model": network.state_dict()}, file)
        return file

    return of


@pytest.fixture
def momenta(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of the runs' optimizers."""
    seen: list[dict[str, Any]] = []
    create = DistillTrainer.create_optimizer

    def watched(self: DistillTrainer, *args: Any, **kwargs: Any) -> Any:
        made = create(self, *args, **kwargs)
        seen.extend({**group, "params": len(group["params"])} for group in made.param_groups)
        return made

    monkeypatch.setattr(DistillTrainer, "create_optimizer", watched)
    return seen


def _steps(output: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if "loss" in record]


def _flags(**given: Any) -> list[str]:
    common = {
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return [word for key, value in {**common, **given}.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("name", CIFAR)
def test_it_runs_on_arrays(
    name: str, pictures: Path, teachers: Any, tmp_path: Path, abkd: Any, momenta: list[dict[str, Any]]
) -> None:
    recipe = load(name)
    given: dict[str, Any] = {
        "train_file": pictures,
        "eval_fraction": 0,
        "eval_strategy": "no",
        "per_device_train_batch_size": 2,
        "output_dir": tmp_path / "run",
    }
    if isinstance(recipe.teacher_model_name_or_path, str):
        checkpoint = teachers(recipe.teacher_model_name_or_path.removeprefix("cifar:"))
        given["teacher_model_init_kwargs"] = f"{{checkpoint: {checkpoint}}}"
    abkd("distill", f"recipes/{name}.yaml", *_flags(**given))
    steps = _steps(tmp_path / "run")
    assert [record["step"] for record in steps] == [1, 2]
    assert all(0 < record["loss"] < 1e6 for record in steps)
    assert {record["learning_rate"] for record in steps} == {0.05}
    group, *others = [group for group in momenta if group["params"]]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 5e-4, 0.05)
    assert not others  # including biases and normalisation
    made = json.loads((tmp_path / "run" / "abkd.json").read_text())
    assert made["num_classes"] == 100


def test_all_held_out_images_are_measured_though_training_leaves_out_its_last_batch(
    pictures: Path, tmp_path: Path, abkd: Any
) -> None:
    """The 12 test images are less than an evaluation batch; and a teacher that was trained here can be used."""
    flags = _flags(
        train_file=pictures, eval_file=pictures, per_device_train_batch_size=4, model_name_or_path="cifar:resnet8"
    )
    abkd("distill", "cifar100/teacher", *flags, "--output_dir", str(tmp_path / "teacher"))
    records = map(json.loads, (tmp_path / "teacher" / "metrics.jsonl").read_text().splitlines())
    scores = [record["eval_accuracy"] * 12 for record in records if "eval_accuracy" in record]
    assert scores
    assert scores == pytest.approx([round(score) for score in scores])
    kind = {"teacher_model_name_or_path": tmp_path / "teacher", "teacher_model_init_kwargs": "null"}
    again = [*flags, *_flags(**kind)[-4:], "--output_dir", str(tmp_path / "student")]
    said = abkd("distill", "cifar100/resnet56_resnet20_abkd", *again)
    assert "teacher" in said
    assert (tmp_path / "student" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small untrained CLIPs, four images, CoOp's split file for them, and the same images in folders."""
    folder = tmp_path_factory.mktemp("clips")
    names = ("red", "green", "blue", "grey")
    noise = np.random.default_rng(0)
    pixels = torch.from_numpy(noise.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("abkd.demo.clip._MOST_TOKENS", 60)  # letter by letter, for captions that it was not trained on
        for name, width in (("teacher", 64), ("student", 32)):
            train_clip(folder / name, Build(width, 1, width, epochs=1, images=4), pixels, torch.arange(4), names)
    listed = []
    for label, (name, picture) in enumerate(zip(names, pixels, strict=True)):
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / part / name / "0.png")
        listed.append([f"train/{name}/0.png", label, name])
    (folder / "split.json").write_text(json.dumps({"train": listed, "val": listed, "test": listed}))
    return folder


@pytest.mark.parametrize("name", CLIP)
def test_it_runs_on_small_clips(name: str, clips: Path, tmp_path: Path, abkd: Any) -> None:
    recipe = load(name)
    given: dict[str, Any] = {
        "model_name_or_path": clips / "student",
        "teacher_model_name_or_path": clips / "teacher",
        "per_device_train_batch_size": 4,
        "visual_prompt_depth": 1,
        "output_dir": tmp_path / "run",
    }
    split = {"split_file": clips / "split.json", "train_dir": clips}
    given |= split if recipe.split_file else {"train_dir": clips / "train", "eval_dir": clips / "test"}
    abkd("distill", name, *_flags(**given))
    assert all(record["loss"] > 0 for record in _steps(tmp_path / "run"))
    known = json.loads((tmp_path / "run" / "run.json").read_text())
    assert known["base_classes"] == [0, 1]
    records = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert {"eval_base_accuracy", "eval_new_accuracy", "eval_harmonic_mean"} <= records[0].keys()
