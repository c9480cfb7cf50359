from __future__ import annotations

import numpy as np
import pytest

from layerwise.calibration.l2_curve import fit_l2_curve, held_out_curve_errors, pass_seconds
from layerwise.calibration.least_squares import FitError
from tests.calibration.fabricated import GPU, MACHINE_L2, read_curve


def test_fit_recovers_the_ramp() -> None:
    found = fit_l2_curve(read_curve(), GPU.l2_bytes, "made up")

    assert set(MACHINE_L2) == set(found)
    for name, truth in MACHINE_L2.items():
        assert 0 < found[name].standard_error
        assert abs(found[name].value - truth) < max(3 * found[name].standard_error, 0.01 * truth)


def test_noise_free_curve_is_recovered_exactly() -> None:
    found = fit_l2_curve(read_curve(noise=0.0), GPU.l2_bytes, "")

    assert (0.75, 0.95) == (found["l2_full_hit"].value, found["l2_no_hit"].value)


def test_pass_is_served_by_the_l2_below_the_ramp_and_by_hbm_above() -> None:
    size = np.array([0.5, 2.0]) * GPU.l2_bytes
    rates, latencies = np.array([7.4e12, 3.0e12]), np.array([1.8e-6, 2.5e-6])

    assert pass_seconds(MACHINE_L2, size, GPU.l2_bytes) == pytest.approx(latencies + size / rates)


def test_held_out_errors_see_what_a_fit_that_saw_the_size_would_hide() -> None:
    curve = read_curve()
    size, seconds = curve[20]

    errors = held_out_curve_errors([*curve[:20], (size, 2 * seconds), *curve[21:]], GPU.l2_bytes)

    assert len(curve) == len(errors)
    assert errors[20] == errors.max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("sizes", [0, 11])
def test_short_curves_are_refused(sizes: int) -> None:
    with pytest.raises(FitError, match=f"l2 curve: {sizes} points for 6 parameters"):
        fit_l2_curve(read_curve()[:sizes], GPU.l2_bytes, "")
