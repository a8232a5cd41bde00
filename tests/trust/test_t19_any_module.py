"""A plain ``nn.Module``, a ResNet, a ViT and CLIP resume bit for bit, like language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from image_parts import CHANCE, cifar, dropping, image_trainer, pictures, resnet, unlabelled, vit
from training_parts import StopAfter, gap

EVERY_FOURTH = {"save_strategy": "steps", "save_steps": 4}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {"augmentation": CHANCE},
    "augmented by two workers": {"augmentation": CHANCE, "dataloader_num_workers": 2},
    "second epoch, accumulated": {"augmentation": CHANCE, "data": pictures(10), "gradient_accumulation_steps": 2},
    "stepped": {"augmentation": CHANCE, "lr_milestones": [0.5, 0.9], "optim": "sgd", "optim_args": "momentum=0.9"},
    "warming up": {"divergence": "DKD(AlphaBeta(1.0, 0.2), nckd_weight=2.0)", "kd_weight": "anneal(0.0, 1.0)"},
    "unlabelled, batch axis": {"data": unlabelled(), "divergence": "DIST()", "ce_weight": 0.0},
}


@pytest.mark.parametrize(
    ("case", "family"),
    [*((case, dropping) for case in CASES), *(("augmented", family) for family in (vit, resnet, cifar))],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_resume_is_exact(tmp_path, case, family):
    options = {**EVERY_FOURTH, **CASES[case]}
    whole = image_trainer(tmp_path / "whole", family(0), **options)
    whole.train()
    image_trainer(tmp_path / "parts", family(0), **options, callbacks=[StopAfter(4)]).train()
    torch.manual_seed(99)
    resumed = image_trainer(tmp_path / "parts", family(5), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert gap(whole.model, resumed.model) == 0.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install 'abkd[demo]'")
    from clip_run_parts import small_clips

    return small_clips(tmp_path_factory.mktemp("clips"))


def test_resume_of_clip_is_exact(tmp_path, small):
    from clip_run_parts import clip_trainer

    options = {**EVERY_FOURTH, "augmentation": "[RandomCrop(padding=1)]"}
    whole = clip_trainer(tmp_path / "whole", small, **options)
    whole.train()
    clip_trainer(tmp_path / "parts", small, **options, callbacks=[StopAfter(4)]).train()
    torch.manual_seed(99)
    resumed = clip_trainer(tmp_path / "parts", small, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert gap(whole.model, resumed.model) == 0.0
