from __future__ import annotations

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("oracle")
settings.register_profile("laws", deadline=None, derandomize=True, max_examples=20, database=None)
settings.load_profile("laws")
