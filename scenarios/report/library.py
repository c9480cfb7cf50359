"""The charts' library: plotly.js, as plotly's Python package carries it."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib.util import find_spec

from layerwise.sim.plan.errors import MissingPackageError


@cache
def plotly_js() -> str:
    """Its source. Raises MissingPackageError without the package."""
    if find_spec("plotly") is None:
        raise MissingPackageError(
            "plotly",
            "draw charts on a page",
            "pip install '.[report]'",
            "the same as text and --json",
        )
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def packed_plotly_js() -> str:
    """Compressed, as base64: a third of its size, and nothing in it that HTML could take for its own."""
    return base64.b64encode(gzip.compress(plotly_js().encode(), 9, mtime=0)).decode()
