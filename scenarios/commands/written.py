"""What commands that write a file say of it, for machines."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any


def trace_as_data(path: Path, said: str) -> dict[str, Any]:
    """A trace that was written: what it holds and what to know of it. Raises FileFormatError."""
    from layerwise.sim.trace import read_trace

    trace = read_trace(path)
    return {
        "trace": str(path),
        "said": said.splitlines(),
        "name": trace.name,
        "purpose": trace.purpose,
        "kernel_set": trace.kernel_set,
        "timing": trace.timing,
        "num_rows": len(trace.rows),
        "num_ranks": len({row.rank for row in trace.rows}),
        "untraced_step_s": median(trace.untraced_step_s) if trace.untraced_step_s else None,
        "num_steps_timed": len(trace.untraced_step_s),
        "traced_ratio": trace.traced_ratio or None,
        "measured": dict(trace.measured),
        "environment": dict(trace.environment),
        "cautions": list(trace.cautions()),
    }


def calibrated_as_data(out: Path | None, said: str) -> dict[str, Any]:
    """What a calibration says; with a profile `out`, how well each kind of op was fitted."""
    if out is None or not out.is_file():
        return {"said": said.splitlines(), "profile": None}
    from layerwise.sim.profile import load_profile

    profile = load_profile(out)
    kinds = {
        kind: {
            "num_points": fit.num_points,
            "form_median_error": fit.form_median_error,
            "held_out_median_error": fit.held_out_median_error,
            "held_out_p90_error": fit.held_out_p90_error,
        }
        for kind, fit in profile.fits.items()
    }
    return {
        "said": said.splitlines(),
        "profile": {
            "path": str(out),
            "name": profile.name,
            "digest": profile.digest,
            "gpu": profile.gpu,
            "step_factor": profile.step_factor,
            "provenance": dict(profile.provenance),
        },
        "fits": kinds,
    }
