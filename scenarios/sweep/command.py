"""`layerwise sweep`: a file's points, with the profiles of its GPUs, on local or Dask workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from layerwise.calibration.data import profile_path
from layerwise.scenarios.sweep.run import Outcome, run_sweep
from layerwise.scenarios.sweep.spec import Sweep
from layerwise.scenarios.sweep.tables import showing_progress
from layerwise.scenarios.sweep.workers import dask_workers, local_workers
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.profile import Profile, load_profile


def profiles_for(sweep: Sweep, given: Profile | None) -> dict[str, Profile]:
    """By GPU: the given profile for its own, the shipped ones for others; none where none is.

    Raises ProfileMismatchError when the sweep does not have the given profile's GPU.
    """
    gpus = {sweep.base.cluster.gpu.name} | {
        str(one[key])
        for axis in sweep.axes
        for one in axis.alternatives
        for key in ("cluster.gpu", "cluster.gpu.base")
        if key in one
    }
    if given and given.gpu not in gpus:
        given.check_gpu(sweep.base.cluster)
    shipped = {gpu: profile_path(gpu) for gpu in sorted(gpus)}
    found = {gpu: load_profile(path) for gpu, path in shipped.items() if path.exists()}
    return found | ({given.gpu: given} if given else {})


def sweep_to(
    sweep: Sweep,
    out: Path,
    profile: Profile | None,
    *,
    num_workers: int = 0,
    dask: str = "",
    reuse: Sequence[Path] = (),
) -> Outcome:
    """Run a sweep into a file, telling on stderr how far it is; raises what `run_sweep` does."""
    if num_workers < 0:
        raise SpecError("--workers", num_workers, "is negative", "use 1 or more")
    profiles: Mapping[str, Profile] = profiles_for(sweep, profile)
    chosen = dask_workers(dask, num_workers) if dask else local_workers(num_workers)
    with chosen as workers, showing_progress(sweep.num_points) as progress:
        return run_sweep(sweep, out, profiles, workers, reuse=reuse, progress=progress)
