"""Where should the layers of a model live on N GPUs? Predicted and measured from one description.

    import layerwise as lw

    lw.predict("validation/stage-8").tokens_per_s
    lw.rank(model="llama-3-8b", gpus=16, batch=64, context=8000, tpot_below_s=0.02)

Names are loaded when they are first used: `import layerwise` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerwise.answers import (
        Answer,
        CompareAnswer,
        PredictAnswer,
        RankAnswer,
        SimulateAnswer,
        SweepAnswer,
    )
    from layerwise.questions import (
        compare,
        load_scenario,
        predict,
        rank,
        shipped_profile,
        simulate,
        sweep,
    )
    from layerwise.sim.plan.errors import LayerwiseError
    from layerwise.sim.plan.scenario import Scenario
    from layerwise.sim.profile import Profile

__all__ = [
    "Answer",
    "CompareAnswer",
    "LayerwiseError",
    "PredictAnswer",
    "Profile",
    "RankAnswer",
    "Scenario",
    "SimulateAnswer",
    "SweepAnswer",
    "compare",
    "load_scenario",
    "predict",
    "rank",
    "shipped_profile",
    "simulate",
    "sweep",
]

_ELSEWHERE = {
    "LayerwiseError": "layerwise.sim.plan.errors",
    "Profile": "layerwise.sim.profile",
    "Scenario": "layerwise.sim.plan.scenario",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'layerwise' has no attribute {name!r}; it has {__all__}")
    home = "layerwise.questions" if name.islower() else "layerwise.answers"
    return getattr(import_module(_ELSEWHERE.get(name, home)), name)


def __dir__() -> list[str]:
    return sorted(__all__)
