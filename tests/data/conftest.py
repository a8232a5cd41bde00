from __future__ import annotations

import pytest

from tiny_parts import make_chatml, make_llama


@pytest.fixture(scope="session")
def chatml():
    return make_chatml()


@pytest.fixture(scope="session")
def llama():
    return make_llama()
