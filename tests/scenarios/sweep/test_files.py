"""Sweep files: the points that they span, and every way to get one wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.scenarios.sweep.command import profiles_for
from layerwise.scenarios.sweep.spec import MAX_POINTS, Sweep, load_sweep
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.profile import Profile

PAPER = '[base]\npaper = "layer-wise"\n'
BATCHES = PAPER + '[axes]\n"workload.batch_size" = [8, 64]\n'


def loaded(folder: Path, text: str) -> Sweep:
    path = folder / "sweep.toml"
    path.write_text(text)
    return load_sweep(path)


def values(sweep: Sweep) -> list[list[object]]:
    return [sweep.written(settings) for settings, _ in sweep.points()]


def test_axes_are_multiplied_and_the_last_varies_fastest(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, BATCHES + '"workload.context_tokens" = [1_000, 2_000]\n')

    assert ("workload.batch_size", "workload.context_tokens") == sweep.keys
    assert [[8, 1000], [8, 2000], [64, 1000], [64, 2000]] == values(sweep)
    assert 4 == sweep.num_points


def test_zipped_axes_advance_together(tmp_path: Path) -> None:
    sweep = loaded(
        tmp_path,
        'zip = [["workload.batch_size", "workload.num_microbatches"]]\n'
        + BATCHES
        + '"workload.context_tokens" = [1, 2]\n"workload.num_microbatches" = [4, 16]\n',
    )

    assert [[8, 4, 1], [8, 4, 2], [64, 16, 1], [64, 16, 2]] == values(sweep)


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("workload.batch_size", "{from = 1, to = 70, factor = 4}", [1, 4, 16, 64]),
        ("workload.batch_size", "{from = 10, to = 25, step = 5}", [10, 15, 20, 25]),
        (
            "cluster.gpu.l2_bytes",
            '{from = "50MB", to = "0.2GB", factor = 2}',
            [50_000_000, 100_000_000, 200_000_000],
        ),
        (
            "cluster.gpu.hbm_bytes_per_s",
            '{from = "1TB/s", to = "2TB/s", factor = 1.5}',
            [1e12, 1.5e12],
        ),
        ("cluster.gpu.l2_bytes", '["50MB", 60_000_000]', [50_000_000, 60_000_000]),
    ],
)
def test_values_are_read_in_si_units(
    tmp_path: Path, key: str, written: str, expected: list[object]
) -> None:
    sweep = loaded(tmp_path, f'{PAPER}[axes]\n"{key}" = {written}\n')

    assert expected == [row[0] for row in values(sweep)]


def test_a_key_needs_no_quotes(tmp_path: Path) -> None:
    quoted, plain = (
        loaded(tmp_path, f"{PAPER}[axes]\n{key} = [8, 64]\n")
        for key in ('"workload.batch_size"', "workload.batch_size")
    )

    assert quoted == plain


def test_a_placement_is_a_whole_one(tmp_path: Path) -> None:
    """On a base of TP=8 x PP=2: layer-wise has no use for either."""
    sweep = loaded(
        tmp_path,
        '[base]\npaper = "tensor-pipeline"\n[axes]\nplacement = [{strategy = "layer-wise"}, '
        '{strategy = "tensor-pipeline", tensor_parallel = 4}]\n',
    )
    first, second = (sweep.resolve(settings).placement for settings, _ in sweep.points())

    assert ("layer-wise", 1, 1) == (first.strategy, first.tensor_parallel, first.pipeline_parallel)
    assert (4, 1) == (second.tensor_parallel, second.pipeline_parallel)
    assert ("placement.strategy", "placement.tensor_parallel") == sweep.keys


def test_a_named_table_is_a_value(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, PAPER + '[axes]\n"cluster.gpu" = ["h100-sxm", "h200"]\n')
    gpus = [sweep.resolve(settings).cluster.gpu.name for settings, _ in sweep.points()]

    assert ["h100-sxm", "h200"] == gpus


def test_base_is_a_scenario_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[model]\npreset = "paper-16"\n[workload]\nbatch_size = 7\n')
    sweep = loaded(
        tmp_path, '[base]\nscenario = "own.toml"\n[axes]\n"workload.context_tokens" = [1]\n'
    )

    assert ("own", 7) == (sweep.base.name, sweep.base.workload.batch_size)


BIG = ", ".join(str(n) for n in range(1, 1500))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("this is = not = toml", "is not a TOML file"),
        ('[axes]\n"workload.batch_size" = [1]\n', "base=None is missing; add a [base] table"),
        (PAPER, "axes=None is missing; add an [axes] table"),
        (BATCHES + "[axis]\n", "axis={} is not a known key; did you mean 'axes'"),
        (BATCHES.replace("paper =", "papers ="), "did you mean 'paper'"),
        (BATCHES.replace('"layer-wise"', '"layerwise"'), "base.paper='layerwise' is wrong"),
        (BATCHES.replace("[axes]", 'model = "paper-61"\n[axes]'), "did you mean 'paper-16'"),
        (BATCHES.replace("[axes]", 'scenario = "x.toml"\n[axes]'), "and base.paper are both given"),
        (BATCHES.replace('paper = "layer-wise"', ""), "and base.paper are not given"),
        (BATCHES.replace('paper = "layer-wise"', 'scenario = "none.toml"'), "none.toml"),
        (BATCHES.replace("batch_size", "batch_sise"), "did you mean 'workload.batch_size'"),
        (BATCHES.replace("64", '"many"'), "workload.batch_size='many' is not a number"),
        (BATCHES.replace("64", "8.5"), "workload.batch_size='8.5' is not a whole number"),
        (BATCHES.replace("64", "true"), "workload.batch_size='True' is not a number"),
        (BATCHES.replace("64", '"8GB"'), "workload.batch_size has no unit"),
        (BATCHES.replace("[8, 64]", "8"), "is not a list of values; write [1, 8, 64]"),
        (BATCHES.replace("[8, 64]", "[]"), "is not a list of values"),
        (BATCHES.replace("64", "8"), "values are not all different"),
        (BATCHES.replace("[8, 64]", "{to = 8}"), "is not a range; write {from = 1"),
        (BATCHES.replace("[8, 64]", "{from = 1, to = 8}"), "is not a range; write {from = 1"),
        (BATCHES.replace("[8, 64]", "{from = 1, to = 8, factor = 1}"), "never gets from its start"),
        (BATCHES.replace("[8, 64]", "{from = 1, to = 8, factor = 1.5}"), "not a whole number"),
        (BATCHES.replace("[8, 64]", "{from = 1, to = 8, by = 2}"), "by=2 is not a known key"),
        (
            BATCHES.replace("[8, 64]", "{from = 1, to = 1e9, step = 1}"),
            "has more than 100000 values",
        ),
        (
            PAPER + '[axes]\n"run.launch" = {from = 1, to = 2, step = 1}\n',
            "run.launch=1 is unknown",
        ),
        (PAPER + '[axes]\n"run.launch" = ["graph", "grpah"]\n', "run.launch='grpah' is unknown"),
        (PAPER + '[axes]\n"cluster.gpu" = ["h100"]\n', "did you mean 'h100-pcie' or 'h100-sxm'"),
        (PAPER + '[axes]\nplacement = [{strategi = "layer-wise"}]\n', "'placement.strategy'"),
        (PAPER + "[axes]\nplacement = [{}]\n", "axes.placement={} is empty"),
        (
            PAPER
            + '[axes]\nplacement = [{data_parallel = 2}]\n"placement.data_parallel" = [1, 2]\n',
            "is also set by",
        ),
        ('zip = [["workload.batch_size", "workload.context"]]\n' + BATCHES, "is not an axis"),
        (
            'zip = [["workload.batch_size", "workload.context_tokens"]]\n'
            + BATCHES
            + '"workload.context_tokens" = [1]\n',
            "unequal length",
        ),
        ('columns = ["tokens_per_second"]\n' + BATCHES, "did you mean 'tokens_per_s'"),
        ('beliefs = ["hope"]\n' + BATCHES, "beliefs"),
        ("beliefs = []\n" + BATCHES, "beliefs=[] is empty"),
        (
            f"{PAPER}[axes]\nworkload.batch_size = [{BIG}]\nworkload.context_tokens = [{BIG}]\n",
            f"points are more than {MAX_POINTS}",
        ),
    ],
)
def test_bad_file(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(LayerwiseError) as raised:
        loaded(tmp_path, text)

    assert expected in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_points_that_differ_in_context_alone_run_in_a_row(tmp_path: Path) -> None:
    sweep = loaded(
        tmp_path,
        PAPER + '[axes]\n"workload.context_tokens" = [1, 2]\n"workload.batch_size" = [8, 64]\n',
    )
    running = [(place, sweep.written(settings)) for place, settings, _ in sweep.in_running_order()]

    assert [(0, [1, 8]), (2, [2, 8]), (1, [1, 64]), (3, [2, 64])] == running
    assert values(sweep) == [written for _, written in sorted(running)]


def test_the_keys_of_a_file_are_axes(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, PAPER + '[axes]\n"cluster.num_gpus" = [8, 16]\n')

    assert [[8], [16]] == values(sweep)
    assert [8, 16] == [sweep.resolve(settings).cluster.num_gpus for settings, _ in sweep.points()]


def test_a_gpu_with_other_values_is_an_alternative(tmp_path: Path) -> None:
    axis = '"cluster.gpu" = [{base = "h100-sxm"}, {base = "h200", hbm_bytes = "200GB"}]\n'
    sweep = loaded(tmp_path, f"{PAPER}[axes]\n{axis}")
    gpus = [sweep.resolve(settings).cluster.gpu for settings, _ in sweep.points()]

    assert [("h100-sxm", 80 * 10**9), ("h200", 200 * 10**9)] == [
        (gpu.name, gpu.hbm_bytes) for gpu in gpus
    ]
    assert {"h100-sxm", "h200"} == set(profiles_for(sweep, None))


def test_a_kernel_is_an_axis_where_the_base_names_none(tmp_path: Path, profile: Profile) -> None:
    axis = '"kernels.all_reduce" = ["nccl", "one_shot"]\n'
    sweep = loaded(tmp_path, f"{PAPER}[axes]\n{axis}")
    kernels = [
        sweep.resolve(settings).with_kernels(profile.kernels).kernels
        for settings, _ in sweep.points()
    ]

    assert [["nccl"], ["one_shot"]] == values(sweep)
    assert [replace(profile.kernels, all_reduce=name) for name in ("nccl", "one_shot")] == kernels


def test_what_is_set_beside_a_sweep_changes_its_base(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(BATCHES)
    sweep = load_sweep(path, {"cluster.num_gpus": "8", "kernels.all_reduce": "one_shot"})
    points = [sweep.resolve(settings) for settings, _ in sweep.points()]

    assert [(8, "one_shot")] * 2 == [(p.cluster.num_gpus, p.given_all_reduce) for p in points]
