"""The report: one safe file of everything it was given."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from layerwise.scenarios.rank.as_data import ranking_as_data
from layerwise.scenarios.rank.ranking import Ranking, rank
from layerwise.scenarios.rank.tables import print_ranking
from layerwise.scenarios.report.charts import log_axis
from layerwise.scenarios.report.markup import (
    Cell,
    fill,
    in_chart,
    json_for_script,
    safe,
    table,
    visible,
)
from layerwise.scenarios.report.timelines import Lanes, middle_repeat, timeline
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.workload import Workload
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Row, write_trace
from tests.scenarios.conftest import Ran, Run, fake_trace
from tests.scenarios.report.chromium import Watched, real_browser
from tests.synthetic import synthetic_profile

EVIL = "<script>alert(1)</script>"
LIMIT_S = 0.02
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


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    """Of two GPUs of one node; what is above the TPOT asked for misses it."""
    model = replace(MODELS["paper-16"], name=EVIL, num_layers=4)
    work = Workload(batch_size=8, context_tokens=1000)
    return rank(
        model, dgx_cluster(GPUS["h100-sxm"], 2), work, synthetic_profile(), tpot_below_s=LIMIT_S
    )


@pytest.fixture
def ranked(ranking: Ranking) -> dict:
    """As `rank --json` writes it; a test may change it."""
    return json.loads(json.dumps(ranking_as_data(ranking)))


@pytest.fixture
def ranking_file(ranked: dict, tmp_path: Path) -> Path:
    path = tmp_path / "ranking.json"
    path.write_text(json.dumps(ranked))
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
    return Row(
        repeat=repeat,
        step=1,
        rank=3,
        op=op,
        kind="Norm",
        stream="compute",
        ready_s=start_s,
        start_s=start_s,
        end_s=start_s + 1e-6,
        replaced=replaced,
    )


def test_a_timeline_has_predicted_above_measured_each_from_its_first_start():
    made = timeline(
        "",
        [
            Lanes(side="predicted", rows=[row("a", 5.0), row("b", 5.00001)]),
            Lanes(side="measured", rows=[row("a", 9.0)]),
        ],
    )
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
    assert EVIL in page.texts["td"] and f"Ranking: {EVIL} on 2x h100-sxm" in page.texts["h2"]
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


def printed(ranking: Ranking) -> str:
    out = io.StringIO()
    print_ranking(ranking, Console(file=out, width=10_000))
    return out.getvalue()


def page_of_ranking(layerwise: Run, profile_file: Path, tmp_path: Path, data: dict) -> Read:
    path = tmp_path / "ranking.json"
    path.write_text(json.dumps(data))
    ran, text = reported(layerwise, profile_file, tmp_path, path)
    assert 0 == ran.code, ran.err
    return Read(text)


def test_a_ranking_begins_with_the_question_and_the_profile_as_rank_does(
    layerwise, profile_file, tmp_path, ranking, ranked
):
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    _, question, profile, verdict = page.texts["p"][:4]
    assert [question, profile] == printed(ranking).splitlines()[:2]
    assert "TPOT below 20 ms" in question and ranked["verdict"] == verdict


def test_a_ranking_without_a_profile_says_so(layerwise, profile_file, tmp_path, ranked):
    ranked["provenance"]["profile"] = None
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    assert "No calibration profile for h100-sxm: no intervals" in page.texts["p"][2]


def test_what_is_not_validated_is_a_list(layerwise, profile_file, tmp_path, ranked):
    ranked["what_is_not_validated"] = "Not validated, A against B: this (public data), 1.5%; that."
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    assert "Not validated, A against B:" in page.texts["p"]
    assert {"this (public data), 1.5%", "that"} <= set(page.texts["li"])


def test_a_ranking_explains_its_words_as_rank_does(
    layerwise, profile_file, tmp_path, ranking, ranked
):
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    said = " ".join(page.texts["p"])
    shown = " ".join(printed(ranking).split())
    told = re.search(r"TTFT: .* NCCL's\.", shown)
    assert told and told[0] in said


@pytest.mark.parametrize(("num_nodes", "is_said"), [(1, False), (2, True)])
def test_more_gpus_than_were_validated_are_a_caveat(
    layerwise, profile_file, tmp_path, ranked, num_nodes, is_said
):
    ranked["cluster"]["num_nodes"] = num_nodes
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    assert is_said == any("nothing was measured by this project" in p for p in page.texts["p"])


def test_left_out_placements_are_named_by_their_reason(layerwise, profile_file, tmp_path, ranked):
    ranked["left_out"] = [{"name": "TP=16", "reason": "no"}, {"name": "TP=32", "reason": "no"}]
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    assert "Left out: TP=16, TP=32: no." in page.texts["p"]


@pytest.mark.parametrize("limit_s", [LIMIT_S, None])
def test_the_tpot_asked_for_is_a_line_across_the_front(
    layerwise, profile_file, tmp_path, ranked, limit_s
):
    ranked["tpot_below_s"] = limit_s
    front = page_of_ranking(layerwise, profile_file, tmp_path, ranked).charts[0]
    lines = [line["x"] for line in front["data"] if line["name"].startswith("TPOT asked for")]
    assert ([[1e3 * limit_s] * 2] if limit_s else []) == lines
    if limit_s:
        low, high = front["layout"]["xaxis"]["range"]
        assert low < math.log10(1e3 * limit_s) < high


def test_one_row_of_a_ranking_is_the_winner(layerwise, profile_file, tmp_path, ranked):
    ranked["candidates"][-1] |= {"fits": True, "meets": False, "tied_with_winner": False}
    page = page_of_ranking(layerwise, profile_file, tmp_path, ranked)
    assert (1, 1) == (page.texts["td"].count("winner"), page.texts["td"].count("misses the TPOT"))


def test_without_a_trace_the_page_is_called_predicted(
    layerwise, profile_file, ranking_file, trace_file, tmp_path
):
    titles = [
        Read(reported(layerwise, profile_file, tmp_path, *files)[1]).texts["title"]
        for files in ((ranking_file,), (ranking_file, trace_file))
    ]
    assert [["layerwise: predicted"], ["layerwise: predicted beside measured"]] == titles


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([1.0, 10_000.0], ["1", "10", "100", "1,000", "10,000"]),
        ([3.0, 80.0], ["5", "10", "20", "50"]),
        ([0.4, 0.9], ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        ([], ["0.9", "1"]),
    ],
)
def test_a_logarithmic_axis_is_marked_in_round_numbers(values, marks):
    assert marks == log_axis("", values)["ticktext"]


def test_a_sweep_is_drawn_with_a_colour_for_each_placement(layerwise, profile_file, tmp_path):
    path = tmp_path / "rows.csv"
    rows = [("calibrated", "A", 10), ("calibrated", "B", 20), ("uncalibrated", "A", 30)]
    lines = [f"8,{belief},{name},{rate},0.01,ok,k" for belief, name, rate in rows]
    head = "batch,belief,placement,tokens_per_s,tpot_s,status,key"
    drawn = []
    for kept in (lines[:2], lines):
        path.write_text("\n".join([head, *kept]) + "\n")
        _, text = reported(layerwise, profile_file, tmp_path, path)
        drawn.append(Read(text).charts[0]["data"])
    assert [["A", "B"], ["A, calibrated", "B, calibrated", "A, uncalibrated"]] == [
        [each["name"] for each in traces] for traces in drawn
    ]
    assert [2, 3] == [len({each["marker"]["color"] for each in traces}) for traces in drawn]


def test_what_does_not_fit_is_a_row_of_a_sweep_and_no_point(layerwise, profile_file, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "batch,placement,tokens_per_s,tpot_s,status,key\n8,A,10,0.01,ok,k\n9,A,20,0.02,does not fit,l\n"
    )
    _, text = reported(layerwise, profile_file, tmp_path, path)
    page = Read(text)
    assert "does not fit" in page.texts["td"] and [10.0] == page.charts[0]["data"][0]["y"]
    assert "1 of 2" in page.charts[0]["caption"]


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
        keys = [
            float(cell.get_attribute("data-key"))
            for cell in lines.locator("tbody td:nth-child(8)").all()
        ]
        drawn = page.locator(".plot .main-svg").count()
        dark = (
            page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )
        size = len(page.pdf())
    assert [] == watched.errors and [] == watched.outside
    assert len(keys) > 10 and sorted(keys) == keys
    assert drawn >= 6 and dark == (scheme == "dark") and size > 10_000
