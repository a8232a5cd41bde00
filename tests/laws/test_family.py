"""Every exported divergence obeys every law from which it is not exempt."""

from __future__ import annotations

import family_laws  # noqa: F401 - writes the laws into the book
import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_book import LAWS, applicable, family, rows

from abkd.divergences import Divergence

CASES = [pytest.param(each, name, id=f"{each!r}-{name}") for each in family() for name in applicable(each)]


@pytest.mark.parametrize(("divergence", "name"), CASES)
@given(data=st.data())
def test_law(divergence: Divergence, name: str, data: st.DataObject) -> None:
    law = LAWS[name]
    z_p, z_q = data.draw(rows(law.kinds))
    law.check(divergence, z_p, z_q)


def test_every_exported_divergence_is_in_the_family() -> None:
    names = {type(each).__name__ for each in family()}
    assert names >= {
        "AlphaBeta",
        "CLKD",
        "DIST",
        "DKD",
        "ForwardKL",
        "Hellinger",
        "JensenShannon",
        "ReverseKL",
        "SkewForwardKL",
        "SkewReverseKL",
        "Standardized",
        "TotalVariation",
        "TransformedTeacher",
        "WeightedSum",
    }


@pytest.mark.parametrize("divergence", family(), ids=repr)
def test_exemptions_name_a_law_and_a_reason(divergence: Divergence) -> None:
    assert set(divergence.exempt) <= set(LAWS)
    assert all(len(reason) > 10 for reason in divergence.exempt.values())
