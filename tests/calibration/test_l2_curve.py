from __future__ import annotations

import numpy as np
import pytest

from calibration.l2_curve import fit_l2_curve, pass_seconds
from calibration.least_squares import FitError
from tests.calibration.fabricated import GPU, MACHINE_L2, read_curve


def test_fit_recovers_the_ramp() -> None:
    found = fit_l2_curve(read_curve(), GPU.l2_bytes, "made up")

    truth = {"l2_full_hit": 0.75, "l2_no_hit": 0.95, "read_l2_bytes_per_s": 7.4e12}
    assert truth == pytest.approx({name: c.value for name, c in found.items()}, rel=0.01)
    assert all(0 < c.standard_error < 0.02 * c.value for c in found.values())


def test_noise_free_curve_is_recovered_exactly() -> None:
    found = fit_l2_curve(read_curve(noise=0.0), GPU.l2_bytes, "")

    assert (0.75, 0.95) == (found["l2_full_hit"].value, found["l2_no_hit"].value)


def test_pass_is_served_by_the_l2_below_the_ramp_and_by_hbm_above() -> None:
    size = np.array([0.5, 2.0]) * GPU.l2_bytes
    rates = np.array([7.4e12, 3.0e12])

    assert pass_seconds(MACHINE_L2, size, GPU.l2_bytes) == pytest.approx(1.8e-6 + size / rates)


@pytest.mark.parametrize("sizes", [0, 9])
def test_short_curves_are_refused(sizes: int) -> None:
    with pytest.raises(FitError, match=f"l2 curve: {sizes} points for 5 parameters"):
        fit_l2_curve(read_curve()[:sizes], GPU.l2_bytes, "")
