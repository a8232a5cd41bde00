"""The divergences that CONTRIBUTING.md writes out obey the laws, in Python and in C, as if they were exported."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import family_laws  # noqa: F401 - writes the laws into the book
import pytest
import torch
from hypothesis import given
from law_book import LAWS, applicable, rows
from torch import Tensor

import abkd.divergences
from abkd import Dense, ForwardKL, ReverseKL, linear_divergence, notation
from abkd.divergences import Divergence, Pointwise
from abkd.ops import ChunkPlan, _native
from page_parts import ROOT, run_page

NAMES = ("Aitchison", "LeCam", "Symmetrized")


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    """The page's module, its divergences exported."""
    with pytest.MonkeyPatch.context() as patch:
        page = run_page(ROOT / "CONTRIBUTING.md", patch)
        for name in NAMES:
            patch.setattr(abkd.divergences, name, getattr(page, name), raising=False)
        patch.setattr(abkd.divergences, "__all__", [*abkd.divergences.__all__, *NAMES])
        notation.components.cache_clear()
        yield page
    notation.components.cache_clear()


def examples(page: ModuleType) -> list[Divergence]:
    return [example for name in NAMES for example in getattr(page, name).examples()]


@pytest.mark.parametrize("name", LAWS)
def test_they_obey_the_laws(page: ModuleType, name: str) -> None:
    law = LAWS[name]
    held = [each for each in examples(page) if name in applicable(each)]
    assert held

    @given(rows(law.kinds))
    def check(pair: tuple[Tensor, Tensor]) -> None:
        for each in held:
            law.check(each, *pair)

    check()


def test_the_op_computes_them_as_the_reference_does(page: ModuleType) -> None:
    """The C code too, where there is a compiler."""
    for each in examples(page):
        if isinstance(each, Pointwise) and _native.find_compiler():
            assert _native.row_function(each, torch.float32, torch.float32)
        z, y = 2 * torch.randn(40, 300), 2 * torch.randn(40, 300)
        found = []
        for how in ({"plan": ChunkPlan(8, True)}, {"plan": ChunkPlan(8, False)}, {"impl": "reference"}):
            leaf = z.clone().requires_grad_()
            loss = linear_divergence(Dense(leaf), Dense(y), each, temperature=2.0, **how).loss
            found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        for got in found[:2]:
            torch.testing.assert_close(got, found[2], rtol=1e-5, atol=1e-8)


def test_the_transform_is_jeffreys_divergence_of_forward_kl(page: ModuleType) -> None:
    log_p, log_q = torch.randn(2, 5, 9, dtype=torch.float64).log_softmax(-1)
    both = ForwardKL()(log_p, log_q) + ReverseKL()(log_p, log_q)
    torch.testing.assert_close(page.Symmetrized(ForwardKL())(log_p, log_q), both)


def test_the_sum_is_what_its_docstring_says(page: ModuleType) -> None:
    log_p, log_q = torch.randn(2, 5, 9, dtype=torch.float64).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    torch.testing.assert_close(page.LeCam()(log_p, log_q), ((p - q) ** 2 / (p + q)).sum(-1))


def test_the_variance_is_of_the_log_ratio(page: ModuleType) -> None:
    log_p, log_q = torch.randn(2, 5, 9, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(page.Aitchison()(log_p, log_q), (log_p - log_q).var(-1, correction=0))
