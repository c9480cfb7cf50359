"""Settings of the whole test run."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples on every run: a red run can be repeated.
settings.register_profile("layerwise", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("layerwise")
# Tables as wide as anywhere, whatever terminal the tests were started from.
os.environ["COLUMNS"] = "100"
