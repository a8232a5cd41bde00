from __future__ import annotations

import pytest

pytest.register_assert_rewrite("family_laws", "law_book")
