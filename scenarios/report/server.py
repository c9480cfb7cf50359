"""The explorer's page over HTTP, for this machine only.

It listens on loopback and answers only requests that name it so: a page elsewhere whose name was
made to point here (DNS rebinding) sends another Host. Requests wait for one simulation at a time,
a few at most; more are told to come again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from layerwise.scenarios.report.answers import Explorer
from layerwise.scenarios.report.library import plotly_js
from layerwise.scenarios.report.markup import Html, fill, json_for_script, safe, template
from layerwise.scenarios.report.questions import CONTROLS, Control, defaults_of
from layerwise.sim.plan.errors import SpecError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
MAX_PATH, MAX_FIELDS, MAX_WAITING = 2_000, 32, 8
IDLE_S = 30.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src data: blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class ExplorerServer(ThreadingHTTPServer):
    """Bound to a free port of loopback, or to the one given. Raises SpecError where it is taken."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, explorer: Explorer, port: int = 0) -> None:
        if not 0 <= port <= 65_535:
            raise SpecError("--port", port, "is no port", "use 0 for a free one, or 1024 to 65535")
        self.explorer = explorer
        self.waiting = threading.BoundedSemaphore(MAX_WAITING)
        self.files = {
            "/plotly.js": ("text/javascript", plotly_js()),
            "/explore.js": ("text/javascript", template("charts.js") + template("explore.js")),
            "/page.css": ("text/css", template("page.css")),
        }
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise SpecError(
                "--port", port, f"cannot be listened on: {error.strerror}", "use 0 for a free one"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> frozenset[str]:
        """What a request's Host may say."""
        return frozenset(f"{name}:{self.server_port}" for name in NAMES)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "layerwise", ""
    timeout = IDLE_S

    @property
    def ours(self) -> ExplorerServer:
        """The server, as what it is."""
        return cast("ExplorerServer", self.server)

    def do_GET(self) -> None:
        """The page, an answer as JSON, or one of three files."""
        if self.headers.get("Host", "") not in self.ours.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "this page answers to its own address only")
        elif len(self.path) > MAX_PATH:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
        elif not self.ours.waiting.acquire(blocking=False):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests; ask again")
        else:
            try:
                self._answer()
            finally:
                self.ours.waiting.release()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        if address.path in self.ours.files:
            kind, text = self.ours.files[address.path]
            self._send(HTTPStatus.OK, kind, text)
            return
        if address.path not in ("/", "/answer"):
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        try:
            pairs = parse_qsl(address.query, keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "too many parameters")
            return
        if address.path == "/answer":
            found = self.ours.explorer.answer(dict(pairs))
            self._send(HTTPStatus.OK, "application/json", json.dumps(found, allow_nan=False))
        else:
            self._send(HTTPStatus.OK, "text/html", explorer_page(self.ours.explorer, dict(pairs)))

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._send(status, "text/plain", f"{reason}\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Requests are not news."""


def explorer_page(explorer: Explorer, given: Mapping[str, str]) -> str:
    """The page with its first answer in it; that of the defaults, and why, where `given` is wrong."""
    first = explorer.answer(given)
    shown = defaults_of(explorer.start) | dict(given)
    if first["message"]:
        first = explorer.answer({}) | {"message": first["message"]}
    controls = "".join(
        _control(name, control, shown[name], explorer) for name, control in CONTROLS.items()
    )
    return fill(
        template("explore.html"),
        {
            "controls": Html(controls),
            "message": safe(first["message"]),
            "answer": json_for_script(first),
        },
    )


def _control(name: str, control: Control, value: str, explorer: Explorer) -> Html:
    label = f'<label for="{safe(name)}">{safe(control.label)} <small>{safe(control.hint)}</small></label>'
    choices = {m: m for m in explorer.models} if name == "model" else control.choices
    if choices is not None:
        options = "".join(
            f'<option value="{safe(key)}"{" selected" if key == value else ""}>{safe(text)}</option>'
            for key, text in choices.items()
        )
        return Html(
            f'<div>{label}<select id="{safe(name)}" name="{safe(name)}">{options}</select></div>'
        )
    stops = safe(json.dumps(control.stops))
    return Html(
        f'<div>{label}<input id="{safe(name)}" name="{safe(name)}" value="{safe(value)}" '
        f'maxlength="64" autocomplete="off"><input type="range" data-for="{safe(name)}" min="0" '
        f'max="{len(control.stops) - 1}" data-stops="{stops}" aria-label="{safe(control.label)}"></div>'
    )
