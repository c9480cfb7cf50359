"""Every committed measurement predicted with today's shipped profiles, once for all tests."""

from __future__ import annotations

import pytest

from layerwise.calibration.data import profile_path
from layerwise.scenarios.accuracy.scored import Scored
from layerwise.scenarios.accuracy.scoring import score_unseen
from layerwise.sim.profile import load_profile


@pytest.fixture(scope="session")
def everything() -> dict[str, list[Scored]]:
    """All measurements of each GPU."""
    gpus = ("h100-sxm", "h200")
    return {gpu: score_unseen(load_profile(profile_path(gpu))) for gpu in gpus}
