"""Fixtures for all tests: no network, no tracker, the user's caches untouched, one thread, fixed seeds.

``ABKD_TEST_SEED`` and ``ABKD_TEST_THREADS`` change the last two, for numeric tests that must pass on any machine.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import re
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
from hypothesis import HealthCheck, settings

NUMERIC = re.compile(r"/(divergences|laws|ops|sequences)/|/trust/test_t(07|09|1[0-4])_|/recipes/test_.*reductions")
SEED, THREADS = (int(os.environ.get(f"ABKD_TEST_{name}", usual)) for name, usual in (("SEED", "0"), ("THREADS", "1")))
ALL_THREADS = torch.get_num_threads()
LAUNCHED = frozenset(os.environ)
torch.set_num_threads(THREADS)  # fixtures of a module run before those of a test


# The same examples whenever and wherever the gate runs; others with another seed (tools/machines.py).
settings.register_profile(
    "abkd",
    deadline=None,
    derandomize=SEED == 0,
    max_examples=10,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is not a failure
)
settings.load_profile("abkd")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a CUDA device and ABKD_TEST_GPU=1")
    for item in items:
        if NUMERIC.search(item.path.as_posix()):
            item.add_marker("machines")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Freeze loaded objects: accelerate collects garbage after every training, and would scan all of them."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    """Only the demo uses the user's cache, which holds its teacher."""
    if not request.node.get_closest_marker("demo"):
        monkeypatch.setenv("ABKD_CACHE", str(tmp_path_factory.getbasetemp() / "abkd-cache"))


@pytest.fixture(autouse=True)
def _own_launch():
    """transformers 4 hands precision and sharding to Accelerate in the environment, and leaves them there."""
    yield
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_")) and name not in LAUNCHED]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest):
    """Small tensors are faster on one thread, and tests run side by side; the demo runs alone."""
    torch.set_num_threads(ALL_THREADS if request.node.get_closest_marker("demo") else THREADS)


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _own_remarks():
    """The command line takes over the logger; restore it, or later tests cannot read the log."""
    logger = logging.getLogger("abkd")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, logger.level = before
