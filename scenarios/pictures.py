"""Pictures by matplotlib: checked before the work is done, written whole, equal for equal figures."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from layerwise.sim.plan.errors import MissingPackageError, SpecError
from layerwise.sim.trace.writing import appearing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What keeps the date of drawing out of each format, so that equal figures make equal files.
DATELESS = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
# Names come from files: a $ is a $. Text in an SVG stays text.
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "layerwise",
    "text.parse_math": False,
}


def check_picture(path: Path, otherwise: str) -> None:
    """Check that a picture can be drawn into a file; `otherwise` names what works without one.

    Raises SpecError for another format, MissingPackageError without matplotlib.
    """
    if path.suffix.lower() not in DATELESS:
        raise SpecError(
            "--plot",
            str(path),
            "is no picture that can be drawn",
            f"end it in {', '.join(DATELESS)}",
        )
    if find_spec("matplotlib") is None:
        raise MissingPackageError("matplotlib", "draw", "pip install '.[plots]'", otherwise)


@contextmanager
def sheet(path: Path, size_inches: tuple[float, float]) -> Generator[Figure]:
    """Open a figure to draw on, and write it when the block ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=size_inches, layout="constrained")
        yield figure
        ending = path.suffix.lower()
        with appearing(path) as file:
            figure.savefig(
                cast("IO[bytes]", file), format=ending[1:], dpi=150, metadata=DATELESS[ending]
            )
