"""What no fit has seen, scored: the bars, the worst, what was predicted before, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerwise.calibration.points import SweepPoint, attention_point, norm_point
from layerwise.calibration.pricing import point_seconds
from layerwise.calibration.selection import validation_layers
from layerwise.calibration.unseen import unseen
from layerwise.scenarios.accuracy import predictions as accuracy_predictions
from layerwise.scenarios.accuracy import scoring as accuracy
from layerwise.scenarios.accuracy.bars import (
    DECODES,
    LAYERS,
    PAIRS,
    SENDS,
    SMALL_MATMULS,
    Bar,
    groups_of,
    rows_of,
)
from layerwise.scenarios.accuracy.predictions import (
    FORMAT,
    VERSION,
    Committed,
    commit_unseen,
    layer_seconds,
    predict_unseen,
    read_blind,
    read_seconds,
)
from layerwise.scenarios.accuracy.ranking import Ranked, asked_of, rank
from layerwise.scenarios.accuracy.scored import READS, WINDOWS, Scored, coverage_of, summary_of
from layerwise.scenarios.accuracy.scoring import score_unseen
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.scenarios.compare.scores import spread_of
from layerwise.scenarios.predict.alone import predict_run
from layerwise.sim.plan.errors import (
    FileFormatError,
    LayerwiseError,
    TraceMismatchError,
    UnknownKindError,
)
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.ops import Matmul
from layerwise.sim.plan.scenario import PlacementSpec, Scenario
from layerwise.sim.profile import Profile, write_profile
from layerwise.sim.trace import Trace, as_data, read_trace, write_trace
from tests.scenarios.conftest import Run
from tests.synthetic import constant, synthetic_profile

MIB = 2**20
SIZES = (MIB, 512 * MIB)
LAYER, WITH_WINDOWS = "h1024.kv8.l1.b1.c128.decode", "h1024.kv8.l1.b1.c128.decode.persist"
READ_CONSTANTS = {
    "read_launch_s": 1.5e-6,
    "read_miss_s": 0.5e-6,
    "read_l2_bytes_per_s": 5e12,
    "read_hbm_bytes_per_s": 3e12,
}


@dataclass(frozen=True)
class Scene:
    """A few unseen points and layers, and what a profile says of them: seconds by name."""

    profile: Profile
    points: list[SweepPoint]
    layers: list[Scenario]
    point_s: dict[str, float]
    layer_s: dict[str, float]

    @property
    def matmul(self) -> str:
        return self.points[0].name

    def write(
        self,
        folder: Path,
        *,
        slower: str = "",
        factor: float = 1.5,
        extra: str = "",
        kernel_set: str = "",
    ) -> Path:
        """Measurements equal to predictions, but for one that takes `factor` times as long."""

        def measured_s(name: str, seconds: float) -> float:
            return seconds * (factor if name == slower else 1)

        curve = [(size, read_seconds(self.profile, size)) for size in SIZES]
        (folder / "read_curve_scored.json").write_text(json.dumps(curve))
        rows = [
            {"name": n, "step_s": measured_s(n, s), "num_ops": 1} for n, s in self.point_s.items()
        ]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "unseen.jsonl").write_text(lines + extra)
        for layer in self.layers:
            step_s = measured_s(layer.name, self.layer_s[layer.name])
            trace = Trace(
                source="measured",
                name=layer.name,
                scenario=as_data(layer),
                kernel_set=kernel_set or kernel_set_of(layer, self.profile),
                untraced_step_s=(0.5 * step_s, step_s, 2 * step_s),
                purpose="validation",
            )
            write_trace(trace, folder / "layers" / f"{layer.name}.jsonl.gz")
        return folder

    def committed(self, factor: float) -> Committed:
        """Predictions made before, all `factor` times what is predicted now."""
        return Committed(
            profile_digest="before",
            created="2026-01-01T00:00:00+00:00",
            points={name: factor * seconds for name, seconds in self.point_s.items()},
            layers={name: factor * seconds for name, seconds in self.layer_s.items()},
            read_curve={str(size): factor * read_seconds(self.profile, size) for size in SIZES},
        )


def is_small(point: SweepPoint) -> bool:
    """No matmul of more than 1,024 rows."""
    return not (isinstance(point.op, Matmul) and point.op.rows > 1024)


def kernel_set_of(scenario: Scenario, profile: Profile) -> str:
    """What a measured run of the scenario carries."""
    run = predict_run(scenario, profile)
    return run.kernel_set(scenario.run.only_rank, run.repeated_steps)


@pytest.fixture(scope="module")
def scene() -> Scene:
    made = synthetic_profile()
    reads = {name: constant(value) for name, value in READ_CONSTANTS.items()}
    profile = replace(made, machine=made.machine | reads)
    kinds = {point.kind: point for point in reversed(unseen(GPU_KERNELS)) if is_small(point)}
    kinds |= {"large": next(p for p in unseen(GPU_KERNELS) if not is_small(p))}
    points = [kinds[kind] for kind in ("matmul", "large", "decode_attention", "prefill_attention")]
    layers = [
        layer.with_kernels(profile.kernels)
        for layer in validation_layers()
        if layer.name in (LAYER, WITH_WINDOWS)
    ]
    return Scene(
        profile,
        points,
        layers,
        {point.name: point_seconds(profile, point) for point in points},
        {layer.name: layer_seconds(profile, layer) for layer in layers},
    )


@pytest.fixture(autouse=True)
def before(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only the scene's points and layers are unseen; predictions made before would lie here."""
    path = tmp_path / "before.json"
    for module in (accuracy, accuracy_predictions):
        monkeypatch.setattr(module, "unseen", lambda _: scene.points)
        monkeypatch.setattr(module, "validation_layers", lambda: scene.layers)
        monkeypatch.setattr(module, "engine_layers", list)
    monkeypatch.setattr(accuracy_predictions, "two_gpu_runs", lambda _: [])
    monkeypatch.setattr(accuracy, "unseen_prediction_path", lambda _: path)
    return path


@pytest.fixture
def ask(layerwise: Run, scene: Scene, tmp_path: Path) -> Callable[..., Any]:
    """`layerwise accuracy` with the scene's profile."""
    path = tmp_path / "profile.json"
    write_profile(scene.profile, path)
    return lambda *arguments: layerwise("accuracy", "--profile", path, *arguments)


def test_measurements_equal_to_predictions_pass(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    ran = ask("--folder", scene.write(tmp_path))

    assert (0, 6, 0) == (ran.code, ran.out.count("PASS"), ran.out.count("FAIL"))


def test_layer_that_takes_half_as_long_again_fails_and_is_the_worst(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    ran = ask("--folder", scene.write(tmp_path, slower=LAYER))
    worst = ran.out.partition("The worst")[2].splitlines()[2]

    assert (1, 5, 1) == (ran.code, ran.out.count("PASS"), ran.out.count("FAIL"))
    assert (LAYER, "-33.3%") == (worst.split()[0], worst.split()[-1])


def test_point_that_takes_half_as_long_again_fails_its_own_group_alone(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    ran = ask("--folder", scene.write(tmp_path, slower=scene.matmul), "--json")
    data = json.loads(ran.out)
    failed = {row["what"] for row in data["bars"] if row["verdict"] == "FAIL"}
    worst = max(data["measurements"], key=lambda one: abs(one["error"]))

    assert (1, False, {SMALL_MATMULS}) == (ran.code, data["passes"], failed)
    assert {"median", "mean"} == {red["what"] for red in data["red"] if not red["is_point"]}
    assert [scene.matmul] == [one["name"] for one in data["measurements"] if one["is_beyond"]]
    assert 0.1 == worst["tolerance"]
    assert scene.matmul == worst["name"]
    assert -1 / 3 == pytest.approx(worst["error"])


def test_json_names_the_profile_and_every_measurement(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    ran = ask("--folder", scene.write(tmp_path), "--json")
    data = json.loads(ran.out)
    names = [one["name"] for one in data["measurements"]]

    assert (0, True) == (ran.code, data["passes"])
    assert {"name": "synthetic", "digest": scene.profile.digest} == data["profile"]
    assert ["1 MiB", "512 MiB", *scene.point_s, LAYER, WITH_WINDOWS] == names


def test_layers_with_windows_are_a_group_of_their_own(scene: Scene, tmp_path: Path) -> None:
    scored = score_unseen(scene.profile, scene.write(tmp_path))
    groups = {one.name: (one.group, one.part) for one in scored}

    assert (LAYERS, "decode, warm") == groups[LAYER]
    assert (WINDOWS, "decode, warm") == groups[WITH_WINDOWS]


def test_what_was_predicted_before_is_shown_beside(
    scene: Scene, tmp_path: Path, before: Path, ask: Callable[..., Any]
) -> None:
    made = {"format": FORMAT, "version": VERSION, **asdict(scene.committed(1.25))}
    before.write_text(json.dumps(made))
    folder = scene.write(tmp_path)
    errors = ask("--folder", folder).out.partition("|predicted / measured - 1|")[2]
    line = next(line for line in errors.splitlines() if SMALL_MATMULS in line)
    data = json.loads(ask("--folder", folder, "--json").out)

    assert ["1", "+0.0%", "0.0%", "0.0%", "0.0%", "0.0%", "25.0%"] == line.split()[4:]
    blind = [group["blind"]["median"] for group in data["groups"].values()]
    assert pytest.approx([0.25] * 7) == blind
    assert pytest.approx([0.25] * 8) == [one["blind_error"] for one in data["measurements"]]


def test_group_of_which_one_was_not_predicted_before_shows_no_blind_error(
    scene: Scene, tmp_path: Path, before: Path, ask: Callable[..., Any]
) -> None:
    measured = scene.point_s[scene.matmul]
    made = replace(scene.committed(1.25), points={scene.matmul: measured})
    before.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(made)}))
    groups = json.loads(ask("--folder", scene.write(tmp_path), "--json").out)["groups"]

    assert (None, 0.0) == (groups[DECODES]["blind"], groups[SMALL_MATMULS]["blind"]["median"])


def test_point_that_failed_to_be_measured_is_left_out(scene: Scene, tmp_path: Path) -> None:
    failed = json.dumps({"name": scene.matmul, "failed": "out of memory"})
    scored = score_unseen(scene.profile, scene.write(tmp_path, extra=f"{failed}\n"))

    assert [scene.matmul] == [one.name for one in scored if one.group == SMALL_MATMULS]


def test_point_that_is_not_unseen_is_refused(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    other = json.dumps({"name": "matmul/m1.n64.k64/cold", "step_s": 1.0, "num_ops": 1})
    ran = ask("--folder", scene.write(tmp_path, extra=f"{other}\n"))

    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert "'matmul/m1.n64.k64/cold' is no unseen point; measure again" in ran.err


def test_layer_that_is_for_something_else_is_refused(scene: Scene, tmp_path: Path) -> None:
    other = replace(scene.layers[0], name="h768.kv6.l1.b1.c256.decode")
    made = replace(scene, layers=[other], layer_s={other.name: 1.0})

    with pytest.raises(FileFormatError, match=f"{other.name}' is no validation layer"):
        score_unseen(scene.profile, made.write(tmp_path))


def test_folder_without_measurements_is_refused(tmp_path: Path, ask: Callable[..., Any]) -> None:
    ran = ask("--folder", tmp_path)

    assert (2, 1) == (ran.code, len(ran.err.splitlines()))
    assert "read_curve_scored.json: cannot be read" in ran.err


def test_committed_predictions_are_read_as_they_were_made(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    said = commit_unseen(scene.profile, path, SIZES)
    found = read_blind(path)
    assert found is not None
    now = predict_unseen(scene.profile, SIZES)

    assert f"{path}: 8 predictions with profile {scene.profile.digest}" == said
    assert replace(now, created=found.created) == found
    assert (scene.point_s, scene.layer_s) == (found.points, found.layers)


def test_committed_prediction_is_never_overwritten(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    path.write_text("what was said before")

    with pytest.raises(FileFormatError, match="a committed prediction is never overwritten"):
        commit_unseen(scene.profile, path, SIZES)
    assert "what was said before" == path.read_text()


def test_nothing_committed_is_no_prediction(tmp_path: Path) -> None:
    assert read_blind(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", f"does not say format='{FORMAT}'"),
        (json.dumps({"format": FORMAT, "version": VERSION + 1}), "another version than 1"),
        (
            json.dumps({"format": FORMAT, "version": VERSION, "created": ""}),
            "profile_digest=None is missing",
        ),
    ],
)
def test_file_that_is_no_prediction_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "made.json"
    path.write_text(text)

    with pytest.raises(LayerwiseError, match=says):
        read_blind(path)


def test_reads_that_the_l2_holds_go_at_its_pace(scene: Scene) -> None:
    size = 10 * MIB

    assert 1.5e-6 + size / 5e12 == pytest.approx(read_seconds(scene.profile, size))


def test_reads_that_it_does_not_hold_go_at_the_pace_of_hbm(scene: Scene) -> None:
    size = 100 * MIB

    assert 2e-6 + size / 3e12 == pytest.approx(read_seconds(scene.profile, size))


def test_reads_at_the_edge_are_between_the_two(scene: Scene) -> None:
    # The middle of the synthetic ramp, 0.75 to 0.95 of 50 MiB: half of it hits.
    size = round(0.85 * 50 * MIB)
    hit_s, miss_s = size / 5e12, 0.5e-6 + size / 3e12

    assert 1.5e-6 + (hit_s + miss_s) / 2 == pytest.approx(read_seconds(scene.profile, size))


def test_summary_is_of_sizes_and_keeps_the_sign_of_the_median() -> None:
    found = summary_of([-0.30, -0.01, -0.02, -0.03, 0.04, *[-0.02] * 6])

    assert (11, -0.02, 0.02, 0.04, 0.30) == (
        found.num,
        found.signed,
        found.median,
        found.p90,
        found.worst,
    )


@pytest.mark.parametrize(
    ("bar", "expected"),
    [
        (Bar(median=0.02, worst=0.30, each=1.0), True),
        (Bar(median=0.02, worst=0.29, each=1.0), False),
        (Bar(median=0.019, worst=0.30, each=1.0), False),
        (Bar(mean=0.0473, each=1.0), True),
        (Bar(mean=0.0472, each=1.0), False),
    ],
)
def test_bar_asks_for_the_figures_it_names(bar: Bar, *, expected: bool) -> None:
    found = summary_of([-0.30, -0.01, -0.02, -0.03, 0.04, *[-0.02] * 6])

    assert expected == (not bar.misses(found))


def test_group_that_was_not_measured_fails_the_gate(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    folder = scene.write(tmp_path)
    (folder / "unseen.jsonl").write_text("")
    ran = ask("--folder", folder)

    assert (1, 4) == (ran.code, ran.out.count("MISSING"))


def test_line_that_is_no_point_is_named(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    folder = scene.write(tmp_path)
    (folder / "unseen.jsonl").write_text("{\n")
    ran = ask("--folder", folder)

    assert 2 == ran.code
    assert "unseen.jsonl: line 1 is not a sweep point" in ran.err


def scored_at(errors: list[float], half_width: float, group: str = SMALL_MATMULS) -> list[Scored]:
    return [
        Scored(
            group=group,
            part="",
            name=str(n),
            measured_s=math.exp(error),
            predicted_s=1.0,
            half_width=half_width,
        )
        for n, error in enumerate(errors)
    ]


def test_coverage_counts_what_lies_inside_either_end() -> None:
    found = coverage_of(scored_at([0.0, 0.05, -0.05, 0.2, -0.2], half_width=0.1))

    assert found is not None
    assert (5, 0.6, 0.1) == (found.num, found.covered, found.median_half_width)
    assert 2.0 == pytest.approx(found.width_ratio)


def test_what_carries_no_interval_has_no_say_in_coverage() -> None:
    assert coverage_of(scored_at([0.5], half_width=0.0, group=READS)) is None


@pytest.mark.parametrize(
    ("inside", "half_width", "passes"),
    [(180, 0.1, True), (160, 0.1, False), (198, 0.1, False), (180, 0.16, False)],
    ids=["nine in ten", "too few inside", "too many inside", "too wide"],
)
def test_intervals_pass_when_they_cover_and_are_not_too_wide(
    inside: int, half_width: float, passes: bool
) -> None:
    errors = [0.05] * inside + [0.5] * (200 - inside)
    found = coverage_of(scored_at(errors, half_width))

    assert found is not None
    assert passes == found.passes


def test_too_few_intervals_never_pass() -> None:
    found = coverage_of(scored_at([0.05] * 90 + [0.5] * 9, half_width=0.1))

    assert found is not None
    assert not found.passes


def test_json_carries_the_coverage(scene: Scene, tmp_path: Path, ask: Callable[..., Any]) -> None:
    data = json.loads(ask("--folder", scene.write(tmp_path), "--json").out)

    assert (5, 1.0) == (data["intervals"]["num"], data["intervals"]["covered"])
    assert {True, None} == {one["covered"] for one in data["measurements"]}


def test_trace_of_other_kernels_is_refused_by_name(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    ran = ask("--folder", scene.write(tmp_path, kernel_set="0123456789abcdef"))

    assert 2 == ran.code
    assert f"{LAYER!r} ran kernel set '0123456789abcdef' and this version's engine has" in ran.err


def test_layer_is_predicted_with_the_kernels_of_its_own_header(
    scene: Scene, tmp_path: Path
) -> None:
    chooses_others = replace(scene.profile, kernels=GPU_KERNELS)
    scored = score_unseen(chooses_others, scene.write(tmp_path))

    assert scene.layer_s[LAYER] == next(one.predicted_s for one in scored if one.name == LAYER)


def test_trace_that_a_fit_has_seen_is_refused(scene: Scene, tmp_path: Path) -> None:
    folder = scene.write(tmp_path)
    path = folder / "layers" / f"{LAYER}.jsonl.gz"
    write_trace(replace(read_trace(path), purpose="fit"), path)

    with pytest.raises(TraceMismatchError, match="the profile has seen it"):
        score_unseen(scene.profile, folder)


def test_layer_that_is_there_twice_is_refused(scene: Scene, tmp_path: Path) -> None:
    folder = scene.write(tmp_path)
    (folder / "layers" / "copy.jsonl.gz").write_bytes(
        (folder / "layers" / f"{LAYER}.jsonl.gz").read_bytes()
    )

    with pytest.raises(FileFormatError, match=f"{LAYER!r} of {LAYERS} was measured twice"):
        score_unseen(scene.profile, folder)


def test_payloads_that_only_score_are_compared_with_the_profiles_transfers(
    scene: Scene, tmp_path: Path
) -> None:
    folder = scene.write(tmp_path)
    timing = {"op": "send", "mode": "graph", "ranks": [0, 1], "min_s": 1.8e-5, "median_s": 2e-5}
    timings = [
        timing | {"payload_bytes": size, "use": use}
        for size, use in ((1024, "fit"), (3072, "score"))
    ]
    links = {"format": "layerwise-links", "version": 1, "timings": timings}
    (folder / "links.json").write_text(json.dumps(links))
    found = groups_of(score_unseen(scene.profile, folder))[SENDS]

    assert ["send.nvlink4/3072"] == [one.name for one in found]
    assert scene.profile.transfers["send.nvlink4"].seconds(3072) == found[0].predicted_s
    assert 1 / 9 == pytest.approx(found[0].spread)


def test_two_gpu_runs_are_a_group_and_ranked(scene: Scene, tmp_path: Path) -> None:
    folder, profile = scene.write(tmp_path), scene.profile
    steps = {}
    for placement in (
        PlacementSpec(strategy="layer-wise"),
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2),
    ):
        run = replace(
            scene.layers[0],
            name=placement.strategy,
            placement=placement,
            model=replace(scene.layers[0].model, num_layers=2),
            cluster=dgx_cluster(GPUS["h100-sxm"], 2),
        )
        steps[run.name] = predict_run(run, profile).step_s
        trace = Trace(
            source="measured",
            name=run.name,
            scenario=as_data(run),
            purpose="validation",
            kernel_set=kernel_set_of(run, profile),
            untraced_step_s=(steps[run.name],),
        )
        write_trace(trace, folder / "pairs" / f"{run.name}.jsonl")
    scored = score_unseen(profile, folder)
    slower, faster = sorted(steps, key=lambda name: -steps[name])
    row = {row.what: row for row in rows_of(scored)}["ranking of placements"]

    assert steps == {one.name: one.measured_s for one in groups_of(scored)[PAIRS]}
    assert [(faster, slower, True)] == [(p.faster, p.slower, p.is_right) for p in rank(scored)]
    assert (1, "1 of 1 pairs", "PASS") == (row.num, row.seen, row.verdict)


def test_ranking_asks_only_where_the_gap_exceeds_the_interval() -> None:
    pairs = [
        Ranked(faster="a", slower="b", measured_gap=gap, predicted_gap=-0.01, half_width=0.05)
        for gap in (0.04, 0.06)
    ]

    assert [0.06] == [pair.measured_gap for pair in asked_of(pairs)]
    assert not any(pair.is_right for pair in pairs)


def test_spread_is_the_middle_half_of_the_repeats() -> None:
    assert 0.5 == pytest.approx(spread_of([1.0, 2.0, 2.0, 2.0, 3.0]))
    assert 0.0 == spread_of([1.0, 2.0, 3.0])


def test_ledger_takes_the_place_of_the_bars_and_asks_for_less_with_a_reason_only(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    ledger, folder = tmp_path / "ledger.json", scene.write(tmp_path, slower=LAYER)
    written = ask("--folder", folder, "--update-ledger", ledger)
    held = ask("--folder", folder, "--ledger", ledger)
    scene.write(tmp_path, slower=LAYER, factor=3.0)
    worse = ask("--folder", folder, "--ledger", ledger, "--json")
    refused = ask("--folder", folder, "--update-ledger", ledger)
    given = ask("--folder", folder, "--update-ledger", ledger, "--reason", "another GPU")

    # Half as long again misses the bar of whole layers, which is no matter of the ledger.
    assert (0, 0, 1, 2, 0) == tuple(ran.code for ran in (written, held, worse, refused, given))
    assert any(LAYER in problem["name"] for problem in json.loads(worse.out)["problems"])
    assert "--reason=None is missing" in refused.err
    assert "3 explained" in given.err


def test_only_the_list_of_what_is_in_red_makes_a_missed_bar_pass(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    folder, red = scene.write(tmp_path, slower=LAYER), tmp_path / "red.toml"
    red.write_text("")
    missed, newly = ask("--folder", folder), ask("--folder", folder, "--red", red)
    table = f"""
[[family]]
gpu = "{scene.profile.gpu}"
name = "{LAYERS}"
misses = ["median", "worst"]
cause = "It was slowed."
"""
    red.write_text(table)
    family_only = ask("--folder", folder, "--red", red)
    point = f'family = "{LAYERS}"\ntext = "It was slowed."'
    red.write_text(f'{table}[[cause]]\n{point}\npoints.{scene.profile.gpu} = ["{LAYER}"]\n')
    equal = ask("--folder", folder, "--red", red)
    green = ask("--folder", scene.write(tmp_path), "--red", red)

    assert (1, 1, 1, 0, 1) == tuple(ran.code for ran in (missed, newly, family_only, equal, green))
    assert f"In red: {LAYERS}, worst: 33.3% where 6% is allowed." in missed.out
    assert "1 points are farther off" in missed.out
    assert "tests/accuracy/red.toml" in missed.out
    assert 'misses = ["median", "worst"]' in newly.out
    assert f"FAIL {LAYERS}, {LAYER}: newly red, -33.3%" in family_only.out
    assert "PASS" in equal.out
    assert 3 == green.out.count("listed as red and is not")


def test_writing_the_ledger_with_the_list_tells_what_to_change_in_it(
    scene: Scene, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    folder, ledger, red = scene.write(tmp_path, slower=LAYER), tmp_path / "l.json", tmp_path / "r"
    red.write_text("")
    ran = ask("--folder", folder, "--update-ledger", ledger, "--red", red)

    assert (1, True) == (ran.code, ledger.exists())
    assert f'  "{LAYER}",' in ran.out.splitlines()


def test_a_pointwise_point_has_no_group_of_the_accuracy_tables() -> None:
    with pytest.raises(UnknownKindError, match=r"'norm' is not listed in scoring._group_of"):
        accuracy._group_of(norm_point(8, 1024, fused=False))


def test_prompts_are_scored_as_prompts() -> None:
    assert accuracy.PREFILLS == accuracy._group_of(attention_point(1, 8, 8, 512, 512, "cudnn"))


def test_an_op_of_no_known_class_has_no_group() -> None:
    strange: Any = SimpleNamespace(kind="strange", op=SimpleNamespace(kind="Strange"))

    with pytest.raises(UnknownKindError):
        accuracy._group_of(strange)
