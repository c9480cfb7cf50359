"""The report: one safe file of everything it was given."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scenarios.report.markup import Cell, fill, in_chart, json_for_script, safe, table, visible
from scenarios.report.timelines import Lanes, middle_repeat, timeline
from sim.profile import Profile
from sim.trace import Row, write_trace
from tests.scenarios.conftest import Ran, Run, fake_trace
from tests.scenarios.report.chromium import Watched, real_browser

EVIL = "<script>alert(1)</script>"
SCENARIO = """
name = "asked"
[model]
preset = "paper-16"
[cluster]
gpu = "h100-sxm"
num_gpus = 16
[placement]
strategy = "layer-wise"
[workload]
batch_size = 128
context_tokens = 1000
num_microbatches = 16
"""


class Read(HTMLParser):
    """What a page consists of: tags with their attributes, text by the tag that holds it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    @property
    def charts(self) -> list[dict]:
        return [json.loads(text) for text in self.texts["script"] if text.startswith('{"caption"')]


@pytest.fixture
def trace_file(profile: Profile, tmp_path: Path) -> Path:
    path = tmp_path / "stage.jsonl.gz"
    write_trace(replace(fake_trace(profile), purpose="other", name=EVIL), path)
    return path


@pytest.fixture
def ranking_file(tmp_path: Path) -> Path:
    candidate = {
        "placement": EVIL, "num_microbatches": 4, "tokens_per_s": 1000.0, "batch_size": 8,
        "tokens_per_s_interval": {"low": 900.0, "high": 1100.0}, "tokens_per_s_per_gpu": 500.0,
        "tpot_s": 0.008, "ttft_s": 0.1, "bottleneck": "hbm", "bottleneck_share": 0.9,
        "memory": {"total_bytes": 10**10}, "fits": True, "tied_with_winner": False,
        "bound_share": {"hbm": 0.9}, "bubble_share": 0.1,
    }  # fmt: skip
    data = {
        "model": {"name": EVIL}, "cluster": {"name": "two"}, "verdict": "It leads.",
        "what_flips_it": "", "candidates": [candidate], "pareto_front": [candidate],
    }  # fmt: skip
    path = tmp_path / "ranking.json"
    path.write_text(json.dumps(data))
    return path


def reported(layerwise: Run, profile_file: Path, tmp_path: Path, *results: Path) -> tuple[Ran, str]:
    out = tmp_path / "report.html"
    ran = layerwise("report", *results, "--out", out, "--profile", profile_file)
    return ran, out.read_text() if out.exists() else ""


def test_hidden_characters_are_spelled_out():
    assert "a\\x1b[31m \\u202eb é" == visible("a\x1b[31m\n\u202eb é")


def test_text_is_escaped_for_markup_and_for_charts():
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" == safe(EVIL) == in_chart(EVIL)


def test_data_in_a_script_cannot_end_it():
    data = {"name": EVIL, "open": "<!--"}
    text = json_for_script(data)
    assert not re.search("[<>&]", text) and data == json.loads(text)


def test_what_is_filled_in_is_not_a_place():
    assert "{{b}} 2" == fill("{{a}} {{b}}", {"a": safe("{{b}}"), "b": safe("2")})


def test_a_cell_carries_the_number_it_is_sorted_by():
    made = Read(table("t", ["n"], [[Cell("1.5 ms", 0.0015)]]))
    assert ("td", {"data-key": "0.0015", "class": "number"}) in made.tags


def row(op: str, start_s: float, *, repeat: int = 0, replaced: bool = False) -> Row:
    return Row(repeat=repeat, step=1, rank=3, op=op, kind="Norm", stream="compute",
               ready_s=start_s, start_s=start_s, end_s=start_s + 1e-6, replaced=replaced)  # fmt: skip


def test_a_timeline_has_predicted_above_measured_each_from_its_first_start():
    made = timeline("", [Lanes(side="predicted", rows=[row("a", 5.0), row("b", 5.00001)]),
                         Lanes(side="measured", rows=[row("a", 9.0)])])  # fmt: skip
    (bars,) = made.data
    assert ["rank 3 predicted", "rank 3 measured"] == made.layout["yaxis"]["categoryarray"]
    assert {("rank 3 predicted", 0.0), ("rank 3 predicted", 10.0), ("rank 3 measured", 0.0)} == set(
        zip(bars["y"], bars["base"], strict=True)
    )


def test_a_timeline_says_what_it_left_out():
    rows = [row("a", 0.0), row("b", 1e-6), row("send", 2e-6, replaced=True)]
    made = timeline("", [Lanes(side="measured", rows=rows)], max_slices=1)
    assert ["a"] == made.data[0]["text"]
    assert "1 messages were replaced" in made.caption
    assert "The latest 1 of 2 slices are left out." in made.caption


def test_the_repeat_with_the_median_span_is_drawn():
    rows = [row("a", 0.0, repeat=n) for n in range(3)]
    rows += [row("b", end, repeat=n) for n, end in enumerate((9e-6, 2e-6, 5e-6))]
    assert {2} == {each.repeat for each in middle_repeat(rows)}


def test_a_trace_is_shown_with_its_errors_and_its_timeline(
    layerwise, profile_file, trace_file, tmp_path
):
    ran, text = reported(layerwise, profile_file, tmp_path, trace_file)
    page = Read(text)
    assert 0 == ran.code
    assert "pass" not in page.texts["td"] and "not scored" in page.texts["td"]
    captions = [chart["caption"] for chart in page.charts]
    assert ["Predicted against", "Residuals: how", "Predicted above"] == [
        " ".join(caption.split()[:2]) for caption in captions[:3]
    ]


def test_a_scenario_is_predicted(layerwise, profile_file, tmp_path):
    path = tmp_path / "asked.toml"
    path.write_text(SCENARIO)
    ran, text = reported(layerwise, profile_file, tmp_path, path)
    page = Read(text)
    beliefs = {"speed of light", "uncalibrated", "calibrated"}
    assert 0 == ran.code and beliefs <= set(page.texts["td"])
    assert 3 == len(page.charts)


def test_names_from_files_are_text(layerwise, profile_file, trace_file, ranking_file, tmp_path):
    _, text = reported(layerwise, profile_file, tmp_path, trace_file, ranking_file)
    page = Read(text)
    assert EVIL in page.texts["td"] and f"Ranking: {EVIL} on two" in page.texts["h2"]
    assert "alert(1)" not in {body.strip() for body in page.texts["script"]}
    unknown = [a for tag, a in page.tags if tag == "script" and not {"nonce", "type"} & a.keys()]
    assert [] == unknown


def test_the_file_refers_to_nothing_outside_and_is_small(
    layerwise, profile_file, trace_file, tmp_path
):
    _, text = reported(layerwise, profile_file, tmp_path, trace_file)
    assert len(text.encode()) <= 5_000_000
    assert not re.search(r"https?://", text)
    targets = [a[key] for _, a in Read(text).tags for key in ("src", "href") if a.get(key)]
    assert [] == [target for target in targets if not str(target).startswith("#")]


def test_a_sweep_is_shown_as_its_rows(layerwise, profile_file, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"batch,placement,tokens_per_s,tpot_s,status,key\n8,{EVIL},1000,0.01,ok,k\n")
    ran, text = reported(layerwise, profile_file, tmp_path, path)
    page = Read(text)
    assert 0 == ran.code and EVIL in page.texts["td"] and "k" not in page.texts["td"]
    assert [10.0] == page.charts[0]["data"][0]["x"]


def test_what_cannot_be_shown_is_named_beside_what_can(
    layerwise, profile_file, trace_file, tmp_path
):
    other = tmp_path / "notes.txt"
    other.write_text("nothing")
    ran, text = reported(layerwise, profile_file, tmp_path, trace_file, other)
    assert 0 == ran.code and "left out" in ran.err and "notes.txt" in ran.err
    assert any("notes.txt" in said for said in Read(text).texts["li"])


def test_nothing_to_show_is_bad_input(layerwise, profile_file, tmp_path):
    path = tmp_path / "ranking.json"
    path.write_text('{"pareto_front": 3}')
    ran, text = reported(layerwise, profile_file, tmp_path, path)
    assert (2, "") == (ran.code, text)
    assert "ranking.json" in ran.err and "cannot be shown" in ran.err


def test_another_ending_than_html_is_refused_before_the_work(layerwise, tmp_path):
    ran = layerwise("report", "--out", tmp_path / "report.png")
    assert 2 == ran.code and "end it in .html" in ran.err


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_real_browser_draws_sorts_and_asks_for_nothing(
    layerwise, profile_file, trace_file, ranking_file, tmp_path, scheme
):
    reported(layerwise, profile_file, tmp_path, trace_file, ranking_file)
    with real_browser() as browser:
        watched = Watched(browser, color_scheme=scheme)
        page = watched.open((tmp_path / "report.html").as_uri())
        page.click("summary")
        page.wait_for_selector("details .plot .main-svg")
        lines = page.locator("details table.sortable")
        lines.locator("th button").nth(7).click()
        keys = [float(cell.get_attribute("data-key"))
                for cell in lines.locator("tbody td:nth-child(8)").all()]  # fmt: skip
        drawn = page.locator(".plot .main-svg").count()
        dark = (
            page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )
        size = len(page.pdf())
    assert [] == watched.errors and [] == watched.outside
    assert len(keys) > 10 and sorted(keys) == keys
    assert drawn >= 6 and dark == (scheme == "dark") and size > 10_000
