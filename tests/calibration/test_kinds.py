"""Every table of the fit that lists kinds of op: one that it does not list is refused, not guessed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from layerwise.calibration import design, particular, unseen
from layerwise.calibration.build import with_kinds
from layerwise.calibration.data import FOLDER, profile_path
from layerwise.calibration.design import anchor_points
from layerwise.calibration.fit import PARAMETERS, form_for, parameters_of
from layerwise.calibration.least_squares import FitError
from layerwise.scenarios.calibrate.collect import GPU_KERNELS
from layerwise.sim.cost.kinds import KINDS, Kind
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import UnknownKindError
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.scenario import Scenario, paper_scenario
from layerwise.sim.profile import load_profile
from tests.synthetic import synthetic_profile

H100 = GPUS["h100-sxm"]
FLASH = FOLDER / "traces" / "flash-h200"
STRANGE: Any = SimpleNamespace(kind="strange", op=SimpleNamespace(kind="Strange"))


def test_every_form_of_a_kind_has_parameters_and_no_other() -> None:
    assert {kind.form for kind in KINDS.values()} == PARAMETERS.keys()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_what_is_fitted_is_what_is_published(kind: Kind) -> None:
    assert not kind.published or parameters_of(kind.name).keys() == kind.published.keys()


@pytest.mark.parametrize(
    "ask",
    [
        parameters_of,
        lambda kind: form_for(kind, H100),
        lambda kind: anchor_points(KernelChoice(), [kind]),
    ],
    ids=["parameters_of", "form_for", "anchor_points"],
)
def test_a_kind_that_is_not_listed_is_refused_by_name(ask: Any) -> None:
    with pytest.raises(UnknownKindError, match="'strange' is not listed in "):
        ask("strange")


@pytest.mark.parametrize(
    "ask",
    [
        lambda point: design._waves(point.op, H100),
        lambda point: particular._own_bytes(point.op),
        lambda point: unseen.shapes_of([point]),
    ],
    ids=["design", "particular", "unseen"],
)
def test_an_op_of_no_known_class_is_refused(ask: Any) -> None:
    with pytest.raises(UnknownKindError):
        ask(STRANGE)


def on_one_gpu() -> Scenario:
    asked = paper_scenario("layer-wise").with_microbatches(1)
    return replace(asked, cluster=dgx_cluster(H100, 1), model=replace(asked.model, num_layers=1))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"head_dim": 64}, "64"),
        ({"dtype": "float32"}, "float32"),
        ({"kv_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_ops_that_no_point_stands_for_are_left_out_with_the_reason(
    changed: dict[str, Any], told: str
) -> None:
    asked = on_one_gpu()
    asked = replace(asked, model=replace(asked.model, **changed))
    found = particular.points_of(asked.with_kernels(KernelChoice()), synthetic_profile())

    assert any(each.startswith("decode_attention") and told in each for each in found.left_out)
    assert not any(point.kind == "decode_attention" for point in found.points)


def test_another_kernels_points_are_not_mixed_into_the_fitted_kernels() -> None:
    asked = replace(on_one_gpu(), kernels=KernelChoice(decode_attention="flash"))
    found = particular.points_of(asked, synthetic_profile())

    assert ("decode_attention attn.sdpa: flash",) == found.left_out


def test_kinds_that_a_profile_lacks_are_added_and_nothing_else_changes() -> None:
    shipped = load_profile(profile_path("h200"))
    fits = {kind: fit for kind, fit in shipped.fits.items() if not kind.endswith(".flash")}
    hashes = {name: one for name, one in shipped.data_hashes.items() if "flash-h200" not in name}
    without = replace(shipped, fits=fits, data_hashes=hashes)

    assert shipped == with_kinds(FLASH, without, GPU_KERNELS)


def test_a_folder_without_a_new_kind_adds_nothing() -> None:
    with pytest.raises(FitError, match="has their fits; give points of another kind"):
        with_kinds(FLASH, load_profile(profile_path("h200")), GPU_KERNELS)
