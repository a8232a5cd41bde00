"""f-DISTILL's prediction on a small real run: forward KL covers the teacher, reverse KL is mode-seeking."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from abkd.data import TokenizedDataset
from abkd.recipe import load
from training_parts import llama, trainer

END, FIRST, NUMBERS, NAMES = 1, 10, 12, 32  # token ids from FIRST on: the numbers, then the names
STRIDES = (1, 2, 3, 5)


def walks(seed: int, names: range) -> TokenizedDataset:
    """A name, and a walk around a clock from some number with one of four strides, given by the second number."""
    chance = random.Random(seed)
    examples: list[Any] = []
    for name in names:
        for start in range(NUMBERS):
            stride = chance.choice(STRIDES)
            numbers = [FIRST + (start + stride * step) % NUMBERS for step in range(7)]
            ids = [FIRST + NUMBERS + name, *numbers, END]
            examples.append({"input_ids": ids, "trained": [False] * 2 + [True] * 7})
    return TokenizedDataset(examples)


def trained(path: Path, model: Any, teach: Any, steps: int, **options: Any) -> Any:
    """The trainer of a model after this many steps."""
    settings: dict[str, Any] = {
        "eval_samples": 96,
        "max_steps": steps,
        "max_completion_length": 7,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 96,
        "logging_steps": 1000,
    }
    made = trainer(
        path,
        model,
        teach=teach,
        data=walks(0, range(NAMES)),
        eval_dataset=walks(1, range(NAMES)[::4]),
        **{**settings, **options},
    )
    made.train()
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A teacher that has learnt the walks, and a pre-distilled student that is too small for them."""
    path = tmp_path_factory.mktemp("directional")
    teacher, student = llama(7, width=32, layers=2, sharpness=1.0), llama(0, width=8, sharpness=1.0)
    trained(path, teacher, copy.deepcopy(teacher), 150, ce_weight=1.0, kd_weight=0.0, eval_samples=0)
    before = {"source": "Dataset()", "terms": list(load("fdistill_kl").objective().at(0.0))}
    trained(path, student, teacher, 100, **before)
    return teacher, student


@pytest.mark.slow
def test_forward_kl_covers_and_reverse_kl_commits(pair: tuple[Any, Any], tmp_path: Path) -> None:
    teacher, student = pair
    found = {}
    for method in ("kl", "rkl"):
        recipe = load(f"fdistill_{method}")
        own = {"source": recipe.config["source"](1.0), "terms": list(recipe.objective().at(1.0))}
        found[method] = trained(tmp_path / method, copy.deepcopy(student), teacher, 300, **own).evaluate()
    assert found["kl"]["eval_r_cvg"] < found["rkl"]["eval_r_cvg"] - 0.1
    assert found["rkl"]["eval_r_llh"] < found["kl"]["eval_r_llh"] - 0.1
