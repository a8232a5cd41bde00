"""What holds for every test: no network, no tracker, the user's caches untouched, one thread, fixed seeds."""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile

# Before anything imports transformers or matplotlib; processes that tests start inherit it.
os.environ |= {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": tempfile.mkdtemp(prefix="abkd-hf-"),
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}
if os.environ.get("ABKD_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or the Trainer would use whatever devices this machine has

import numpy as np
import pytest
import torch

ALL_THREADS = torch.get_num_threads()
torch.set_num_threads(1)  # fixtures of a module run before those of a test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a CUDA device and ABKD_TEST_GPU=1")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    """Only the demo sees the user's cache: the teacher lies there."""
    if not request.node.get_closest_marker("demo"):
        monkeypatch.setenv("ABKD_CACHE", str(tmp_path_factory.getbasetemp() / "abkd-cache"))


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest):
    """Small tensors are faster on one thread, and tests run side by side; the demo runs alone."""
    torch.set_num_threads(ALL_THREADS if request.node.get_closest_marker("demo") else 1)


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_remarks():
    """The command line takes the logger for itself; give it back, or later tests could not read what is said."""
    logger = logging.getLogger("abkd")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, logger.level = before
