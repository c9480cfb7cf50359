"""The two commands: a report written, the explorer served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerwise.scenarios.report.answers import Explorer
from layerwise.scenarios.report.library import plotly_js
from layerwise.scenarios.report.page import check_out, write_page
from layerwise.scenarios.report.results import Found, Profiles, committed, found_in
from layerwise.scenarios.report.server import ExplorerServer
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.files import load_model_config
from layerwise.sim.plan.model import MODELS
from layerwise.sim.profile import Profile

MAX_RESULTS = 100


def make_report(
    results: Sequence[Path], out: Path, profiles: Profiles, needed: Callable[[str], Profile]
) -> dict[str, Any]:
    """Write the page; returns what is in it.

    Raises SpecError where nothing can be shown, MissingPackageError without plotly.
    """
    check_out(out)
    plotly_js()
    if len(results) > MAX_RESULTS:
        raise SpecError(
            "RESULT",
            len(results),
            "files are more than a page holds",
            f"give {MAX_RESULTS} or fewer",
        )
    found = found_in(results, profiles, needed) if results else committed(profiles, needed)
    return write_page(found, _made_by(results, found), out)


def _made_by(results: Sequence[Path], found: Found) -> str:
    from layerwise.scenarios.predict.beliefs import provenance_of

    version = str(provenance_of(None)["package_version"]).replace("not installed", "")
    of = (
        _counted(len(results), "result")
        if results
        else "the paper and every committed validation run"
    )
    parts = _counted(len(found.sections), "part")
    return f"Made by {f'layerwise {version}'.strip()} of {of}, in {parts}."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def explorer_of(profiles: Profiles, models: Sequence[Path]) -> Explorer:
    """One that offers the presets and these files' models, and starts on the first of the files."""
    given = [load_model_config(path) for path in models]
    known = dict(MODELS) | {model.name: model for model in given}
    return Explorer(profiles, known, given[0].name) if given else Explorer(profiles, known)


def serve(
    profiles: Profiles, models: Sequence[Path], port: int, tell: Callable[[str], None]
) -> None:
    """Serve the explorer until Ctrl-C; `tell` is given its address once it listens.

    Raises FileFormatError or SpecError for a model's file, SpecError for a port that is taken.
    """
    server = ExplorerServer(explorer_of(profiles, models), port)
    tell(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
