"""The explorer: bounded questions, answered on loopback to its own page only."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from layerwise import scenarios
from layerwise.scenarios.rank.ranking import rank
from layerwise.scenarios.report.answers import MAX_ANSWERS, Explorer
from layerwise.scenarios.report.making import explorer_of
from layerwise.scenarios.report.questions import CONTROLS, PLACEMENTS
from layerwise.scenarios.report.server import ExplorerServer, explorer_page
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS
from layerwise.sim.plan.scenario import paper_scenario
from layerwise.sim.plan.workload import Workload
from layerwise.sim.predict import predict
from tests.scenarios.report.chromium import Watched, real_browser

EXAMPLES = Path(scenarios.__file__).parent / "examples"
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def explorer(profile) -> Explorer:
    return Explorer(lambda gpu: profile if gpu == profile.gpu else None)


@contextmanager
def serving(explorer: Explorer) -> Generator[ExplorerServer]:
    server = ExplorerServer(explorer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(server: ExplorerServer, path: str, host: str = "") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def figure(answer: dict, label: str) -> list[str]:
    return next(cells for name, *cells in answer["rows"] if name == label)


def test_the_defaults_are_the_papers_question(explorer, profile):
    scenario = paper_scenario("layer-wise").with_microbatches(16)
    answer = explorer.answer({})
    assert ["", "layer-wise", "TP=8 x PP=2"] == answer["columns"]
    assert f"{predict(scenario, profile).tokens_per_s:,.0f}" == figure(answer, "tokens/s")[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"batch": "64"},
        {"context": "2000"},
        {"gpus": "8"},
        {"gpu": "h200"},
        {"l2_bytes": "8GB"},
        {"placement": "tp4"},
        {"model": "paper-30b"},
        {"microbatches": "32"},
    ],
)
def test_every_control_moves_the_answer(explorer, changed):
    before, after = explorer.answer({}), explorer.answer(changed)
    assert "" == after["message"]
    assert figure(before, "tokens/s")[0] != figure(after, "tokens/s")[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"nvlink_bytes_per_s": "100GB/s"},
        {"all_reduce": "one_shot"},
        {"beside": "tp2"},
    ],
)
def test_links_and_collectives_move_the_placement_beside(explorer, changed):
    before, after = explorer.answer({}), explorer.answer(changed)
    assert figure(before, "tokens/s")[1] != figure(after, "tokens/s")[1]


def test_the_query_holds_what_differs_from_the_defaults(explorer):
    assert "batch=64" == explorer.answer({"batch": "64", "context": "10000"})["query"]


def test_what_wins_a_ranking_can_be_asked_for_and_is_called_the_same(explorer, profile):
    cluster = dgx_cluster(GPUS["h100-sxm"], 4)
    work = Workload(batch_size=8, context_tokens=1000, num_microbatches=1)
    ranked = rank(MODELS["paper-16"], cluster, work, profile)
    names = {each.layout.name: f"{each.tokens_per_s:,.0f}" for each in ranked.candidates}
    for reduce in ("nccl", "one_shot"):
        answer = explorer.answer(
            {
                "placement": "tp2-dp",
                "beside": "tp1-dp",
                "gpus": "4",
                "batch": "8",
                "context": "1000",
                "microbatches": "1",
                "all_reduce": reduce,
            }
        )
        shown = dict(zip(answer["columns"][1:], figure(answer, "tokens/s"), strict=True))
        own = "TP=2 x DP=2" + (", 1-shot" if reduce == "one_shot" else "")
        assert {own: names[own], "DP=4": names["DP=4"]} == shown


def test_replicas_that_do_not_share_the_batch_are_a_message(explorer):
    message = explorer.answer({"placement": "tp2-dp", "batch": "3"})["message"]
    assert "placement.data_parallel=8 does not divide workload.batch_size=3" in message


@pytest.mark.parametrize("named", PLACEMENTS)
def test_every_placement_goes_on_sixteen_gpus(explorer, named):
    assert "" == explorer.answer({"placement": named})["message"]


def test_it_starts_on_the_model_that_was_given(profile, tmp_path):
    path = tmp_path / "own-model.json"
    path.write_text((EXAMPLES / "llama-3-8b.json").read_text())
    explorer = explorer_of(lambda _: profile, [path])
    named, first = explorer.answer({"model": "own-model"}), explorer.answer({})
    page = explorer_page(explorer, {})

    assert named is first
    assert '<option value="own-model" selected>' in page
    assert "paper-16" in explorer.models and "model=own-model" == first["query"]
    assert "model=paper-16" == explorer.answer({"model": "paper-16"})["query"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": "-3"}, "batch='-3' is out of bounds; use 1 to 4,096"),
        ({"batch": "1e9"}, "is out of bounds"),
        ({"batch": "2.5"}, "is not a whole number"),
        ({"context": "many"}, "is not a number"),
        ({"l2_bytes": "8GB/s"}, "has the unit"),
        ({"gpu": "h1000"}, "is no choice"),
        ({"gpus": "4"}, "is no multiple of the 8 of tp8"),
        ({"batch": "1" * 100}, "is too long"),
        ({"bacth": "3"}, "is no control; did you mean 'batch'?"),
    ],
)
def test_a_bad_parameter_is_a_message(explorer, given, said):
    answer = explorer.answer(given)
    assert ["message"] == list(answer) and said in answer["message"]


def test_the_work_of_one_request_is_bounded(explorer):
    asked = {"model": "paper-30b", "gpus": "32", "placement": "tp1", "microbatches": "64"}
    message = explorer.answer(asked)["message"]
    assert "microbatches=64 on 32 stages is more than this page does; use 32 or fewer" == message


def test_answers_are_remembered_and_forgotten(explorer):
    first = explorer.answer({})
    assert explorer.answer({}) is first
    explorer._answers.update({str(n): {} for n in range(MAX_ANSWERS)})
    explorer.answer({"batch": "1"})
    assert MAX_ANSWERS == len(explorer._answers)


def test_a_page_asked_for_wrongly_shows_the_defaults_and_why(explorer):
    page = explorer_page(explorer, {"batch": EVIL})
    assert EVIL not in page and "&lt;script&gt;" in page
    first = json.loads(page.partition('id="first">')[2].partition("</script>")[0])
    assert "is not a number" in first["message"]
    assert explorer.answer({})["rows"] == first["rows"]


def test_a_models_name_is_text(profile):
    named = replace(MODELS["paper-16"], name=EVIL)
    page = explorer_page(Explorer(lambda _: profile, {**MODELS, EVIL: named}), {"model": EVIL})
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_it_listens_on_loopback_only(explorer):
    with serving(explorer) as server:
        assert "127.0.0.1" == server.server_address[0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/answer?batch=64", 200),
        ("/page.css", 200),
        ("/plotly.js", 200),
        ("/../pyproject.toml", 404),
        ("/answer/", 404),
        ("/?" + "a" * 3000, 414),
        ("/?" + "&".join("a=1" for _ in range(50)), 400),
    ],
)
def test_it_serves_its_page_and_nothing_else(explorer, path, status):
    with serving(explorer) as server:
        assert status == get(server, path)[0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_another_host_is_refused(explorer, host):
    with serving(explorer) as server:
        assert 403 == get(server, "/answer", host)[0]
        assert 200 == get(server, "/answer", f"localhost:{server.server_port}")[0]


def test_more_requests_than_may_wait_are_told_to_come_again(explorer):
    with serving(explorer) as server:
        server.waiting = threading.BoundedSemaphore(1)
        server.waiting.acquire()
        assert 503 == get(server, "/answer")[0]


def test_a_port_that_is_taken_is_named(explorer):
    with serving(explorer) as server, pytest.raises(SpecError) as refused:
        ExplorerServer(explorer, server.server_port)
    assert "cannot be listened on" in str(refused.value)


def test_every_control_is_on_the_page(explorer):
    page = explorer_page(explorer, {})
    assert [] == [name for name in CONTROLS if f'name="{name}"' not in page]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_real_browser_controls_change_numbers(explorer, scheme):
    with serving(explorer) as server, real_browser() as browser:
        watched = Watched(browser, color_scheme=scheme)
        page = watched.open(f"{server.url}?context=1000")
        seen = [page.inner_text("#headline")]
        for turn, (name, value) in enumerate((("batch", "64"), ("l2_bytes", "8GB")), 1):
            page.fill(f"#{name}", value)
            page.wait_for_selector(f'body[data-asked="{turn}"]')
            seen.append(page.inner_text("#headline"))
        page.select_option("#gpus", "4")
        page.wait_for_selector('body[data-asked="3"]')
        message, url = page.inner_text("#message"), page.url
        drawn = page.locator(".plot .main-svg").count()
    assert 3 == len(set(seen)) and drawn >= 3
    assert "is no multiple" in message
    assert f"{server.url}?batch=64&context=1000&l2_bytes=8GB" == url
    assert [] == watched.errors and [] == watched.outside
