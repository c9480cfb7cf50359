"""Points at the edges, points of power and whole models: what may be fitted, and what only scores."""

from __future__ import annotations

import pytest

from layerwise.calibration import edges, power_points
from layerwise.calibration.whole_models import FITTED, SCORED, fit_models, validation_models
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.sim.cost.kinds import kind_named
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import place


def test_every_edge_is_the_point_of_its_name() -> None:
    found = edges.edges(GPU_KERNELS)

    assert len({point.name for point in found}) == len(found) > 800
    for point in found:
        again = edges.point_named(point.name, GPU_KERNELS)
        assert (again.kind, again.op, again.num_repeats) == (
            point.kind,
            point.op,
            point.num_repeats,
        )


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("decode_attention/s47.h8.kv2.c6514.d256/cold", "decode_attention.heads_256", (94, 6514)),
        ("decode_attention/s9.h16.kv16.c435/cold", "decode_attention", (144, 435)),
        ("embed/t13.h1024.v202048/cold", "embed.few", (13, 1024)),
        ("embed/t19.h1024.v202048/cold", "embed", (19, 1024)),
        ("sample/s4.v131072/cold", "sample", (4, 131_072)),
        ("sample/s4.v151936/cold", "sample.spread", (4, 151_936)),
    ],
)
def test_a_name_says_which_kind_of_op_it_is(name: str, kind: str, sizes: tuple[int, int]) -> None:
    point = edges.point_named(name, GPU_KERNELS)

    assert (point.name, point.kind) == (name, kind)
    assert kind_named(kind).features_of(point.op)[:2] == sizes


def test_a_name_of_no_kind_is_refused() -> None:
    with pytest.raises(FileFormatError, match="norm"):
        edges.point_named("norm/t8.h1024/cold", GPU_KERNELS)


def test_a_fifth_of_each_edge_and_three_tenths_of_power_only_score() -> None:
    names = [point.name for point in edges.edges(GPU_KERNELS)]
    aside = edges.set_aside(names)

    assert aside == edges.set_aside(reversed(names))
    assert 0.19 < len(aside) / len(names) < 0.21
    of_power = [point.name for point in power_points.power_points(GPU_KERNELS)]
    assert 9 == len(power_points.set_aside(of_power))


def test_sustained_matmuls_were_not_measured_before() -> None:
    taken = {point.name for point in power_points.power_points(GPU_KERNELS)}
    found = power_points.unseen_sustained(GPU_KERNELS)

    assert power_points.NUM_UNSEEN == len({point.name for point in found} - taken)
    assert all(isinstance(p.op, ops.Matmul) and p.op.rows > 1024 for p in found)


def test_no_model_is_fitted_and_scored() -> None:
    def shapes(models: dict[str, ModelSpec]) -> set[tuple[int, int, int]]:
        return {(m.num_layers, m.hidden_size, m.vocab_size) for m in models.values()}

    fitted, scored = fit_models("h200"), validation_models("h200")

    assert not shapes(FITTED) & shapes(SCORED)
    assert not {one.name for one in fitted} & {one.name for one in scored}
    assert 20 == len({one.name for one in scored})
    assert 14 == sum(one.workload.phase == "decode" for one in scored)
    for one in (*fitted, *scored):
        assert one.run.regime == "sustained"
        assert place(one).num_ranks == one.cluster.num_gpus
