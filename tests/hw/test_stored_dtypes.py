"""What is stored in 8 bits is predicted only."""

from __future__ import annotations

import pytest
import torch

from layerwise.hw.measure import check_request
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.overrides import with_values
from layerwise.sim.plan.scenario import paper_scenario


@pytest.mark.parametrize("key", ["model.weight_dtype", "model.kv_dtype"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_measuring_it_is_refused(key: str, device: str) -> None:
    asked = with_values(paper_scenario("layer-wise"), {key: "float8_e4m3fn", "run.launch": "eager"})

    with pytest.raises(SpecError) as caught:
        check_request(asked, None, torch.device(device))

    assert f"{key}='float8_e4m3fn' is predicted only" in str(caught.value)
