from __future__ import annotations

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("oracle")
settings.register_profile("divergences", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("divergences")
