"""Parts -> one file that works from disk: markup, data, stylesheet, scripts and the charts' library.

Its content security policy allows nothing from outside and only the scripts written here; the mark
that tells them (`nonce`) is a hash of the whole page, so no text inside can carry it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerwise.scenarios.report.library import packed_plotly_js
from layerwise.scenarios.report.markup import Html, bullets, fill, safe, template
from layerwise.scenarios.report.results import Found
from layerwise.scenarios.report.sections import Section
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.trace import write_atomically

MAX_BYTES = 5_000_000
SUFFIXES = (".html", ".htm")


def check_out(path: Path) -> None:
    """Before the work is done: raises SpecError for a name that no browser opens as a page."""
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError("--out", str(path), "is no page", "end it in .html")


def page_of(found: Found, made: str) -> str:
    """The whole file. `made`: by what, in a sentence. Raises MissingPackageError without plotly."""
    left_out = Section(title="Left out", key="left-out")
    if found.left_out:
        left_out.add(bullets(found.left_out))
    sections = [*found.sections, *([left_out] if found.left_out else [])]
    body = Html("".join(section.html for section in sections))
    packed = packed_plotly_js()
    return fill(
        template("report.html"),
        {
            "nonce": Html(hashlib.sha256((body + packed).encode()).hexdigest()[:32]),
            "title": safe(
                f"layerwise: predicted{' beside measured' if found.has_measured else ''}"
            ),
            "made": safe(made),
            "style": Html(template("page.css")),
            "contents": _contents(sections),
            "body": body,
            "plotly": Html(packed),
            "script": Html(template("charts.js") + template("report.js")),
        },
    )


def write_page(found: Found, made: str, path: Path) -> dict[str, Any]:
    """Write it; returns what was written. Raises SpecError when it would be larger than MAX_BYTES."""
    text = page_of(found, made)
    size = len(text.encode())
    if size > MAX_BYTES:
        raise SpecError(
            "RESULT",
            f"{len(found.sections)} results",
            f"make a page of {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}",
            "give fewer of them",
        )
    write_atomically(path, text)
    return {
        "out": str(path),
        "num_bytes": size,
        "sections": [part.title for part in found.sections],
        "num_charts": sum(part.num_charts for part in found.sections),
        "left_out": found.left_out,
    }


def _contents(sections: Sequence[Section]) -> Html:
    links = "".join(f'<a href="#{safe(s.key)}">{safe(s.title)}</a>' for s in sections)
    return Html(f'<nav aria-label="Contents">{links}</nav>')
