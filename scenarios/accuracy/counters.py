"""Predicted bytes beside counted ones, op by op: is the L2 where the model says it is?

`layerwise compare --counters FILE` reads what `layerwise counters` wrote on a GPU.

A hit is predicted as a share of the bytes that an op's tensors hold, each read once. Its counterpart
is what did not come from HBM: 1 - HBM bytes / those bytes; below zero where more was fetched. The
hit rates that Nsight Compute counts are printed beside it, and are of lookups: they are higher
where SMs read the same rows, and where one half of the L2 asks the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from layerwise.hw.counters.op_counters import FORMAT, VERSION, Counters, OpCounters, add_counters
from layerwise.scenarios import tables
from layerwise.scenarios.calibrate.collect import on_gpu
from layerwise.scenarios.tables import escape
from layerwise.sim.cost.model import Traffic
from layerwise.sim.plan.errors import (
    FileFormatError,
    ProfileMismatchError,
    TraceMismatchError,
)
from layerwise.sim.plan.files import scenario_from_data, validate
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import Profile
from layerwise.sim.traffic import add_up, read_traffic, traffic_of

MEGA = 1e6
_LAYER = re.compile(r"^L\d+\.")


@dataclass(frozen=True, kw_only=True)
class OpBytes:
    """One op, or several summed (`count`): what was predicted, and what was counted.

    `counted` is None for an op that ran no kernel.
    """

    op: str
    predicted: Traffic
    counted: OpCounters | None
    count: int = 1

    @property
    def demand_bytes(self) -> int:
        """What the op reads, each byte once."""
        return self.predicted.hbm_read_bytes + self.predicted.l2_read_bytes

    @property
    def hbm_read_bytes(self) -> float:
        """Counted."""
        return self.counted.hbm_read_bytes if self.counted else 0.0

    @property
    def predicted_hit(self) -> float:
        """Share of what it reads that the L2 is predicted to hold."""
        return self.predicted.l2_read_bytes / self.demand_bytes if self.demand_bytes else 0.0

    @property
    def counted_hit(self) -> float:
        """Share of what it reads that did not come from HBM."""
        return 1 - self.hbm_read_bytes / self.demand_bytes if self.demand_bytes else 0.0

    @property
    def hit_error(self) -> float:
        """Predicted less counted, a difference of shares."""
        return self.predicted_hit - self.counted_hit


@dataclass(frozen=True, kw_only=True)
class CountersCompared:
    """One file of counters beside its prediction. `total` sums all its ops: a step, or all reads."""

    counters: Counters
    gpu: str
    profile: Profile
    ops: tuple[OpBytes, ...]

    @property
    def total(self) -> OpBytes:
        """All ops together."""
        return _summed("all", self.ops)

    @property
    def groups(self) -> tuple[OpBytes, ...]:
        """The same op of all layers and microbatches summed: `L07.attn.qkv@m3` is `attn.qkv`."""
        found: dict[str, list[OpBytes]] = {}
        for one in self.ops:
            found.setdefault(_LAYER.sub("", one.op.partition("@")[0]), []).append(one)
        return tuple(_summed(label, each) for label, each in found.items())

    @property
    def without_kernels(self) -> tuple[str, ...]:
        """Ops that move bytes in the prediction and ran nothing."""
        return tuple(one.op for one in self.ops if one.counted is None)

    @property
    def median_absolute_hit_error(self) -> float:
        """Over groups."""
        return median(abs(one.hit_error) for one in self.groups)


def read_counters(path: Path) -> Counters:
    """Read what `layerwise counters` wrote. Raises FileFormatError, or SpecError for wrong fields."""
    data = read_json(path)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise FileFormatError(
            f"{path}: does not say format={FORMAT!r}; is it from `layerwise counters`?"
        )
    found = data.pop("version", None)
    if found != VERSION:
        raise FileFormatError(
            f"{path}: version={found!r} is another than {VERSION}, which this program reads; "
            "measure again"
        )
    return validate(Counters, data, str(path))


def gpu_of(counters: Counters) -> str:
    """The known GPU of that many SMs and that L2, whatever the scenario was written for.

    Raises ProfileMismatchError when none is.
    """
    seen = counters.environment
    for gpu in GPUS.values():
        if (str(gpu.num_sms), str(gpu.l2_bytes)) == (seen.get("num_sms"), seen.get("l2_bytes")):
            return gpu.name
    raise ProfileMismatchError(
        f"counters {counters.name!r} are of {seen.get('gpu')!r} with num_sms={seen.get('num_sms')} "
        f"and l2_bytes={seen.get('l2_bytes')}, and no known GPU is like it: {', '.join(GPUS)}; "
        "give counters of one of these"
    )


def compare_counters(counters: Counters, profile: Profile) -> CountersCompared:
    """Join counters with what is predicted for the GPU they were taken on.

    Raises ProfileMismatchError for a profile of another GPU, TraceMismatchError for counted ops
    that are not predicted, and for predicted ones that never ran.
    """
    gpu = gpu_of(counters)
    if profile.gpu != gpu:
        raise ProfileMismatchError(
            f"counters {counters.name!r} are of an {gpu} and profile {profile.name!r} is of an "
            f"{profile.gpu}; give the profile of an {gpu}"
        )
    if counters.working_sets_bytes:
        predicted = {
            name: read_traffic(size, profile, GPUS[gpu].l2_bytes)
            for name, size in counters.working_sets_bytes.items()
        }
    else:
        source = f"counters {counters.name!r}: scenario"
        scenario = scenario_from_data(counters.scenario, source)
        predicted = traffic_of(on_gpu(scenario, gpu), profile)
    counted = {one.op: one for one in counters.ops}
    _require_known(counters, counted.keys() - predicted.keys())
    ran = [name for name in predicted if name in set(counters.ops_run)]
    if not ran:
        raise TraceMismatchError(
            f"counters {counters.name!r} are of none of the predicted ops; measure again with this "
            "version of layerwise"
        )
    ops = tuple(
        OpBytes(op=name, predicted=predicted[name], counted=counted.get(name)) for name in ran
    )
    return CountersCompared(counters=counters, gpu=gpu, profile=profile, ops=ops)


def compare_files(
    paths: Iterable[Path], profiles: Callable[[str], Profile]
) -> list[CountersCompared]:
    """Compare each file with what the profile of its GPU predicts; raises as `compare_counters`."""
    read = [read_counters(path) for path in paths]
    return [compare_counters(one, profiles(gpu_of(one))) for one in read]


def compared_as_data(compared: CountersCompared) -> dict[str, Any]:
    """For machines: SI units; ops by their full names, the step's sum beside them."""
    counters = compared.counters
    return {
        "name": counters.name,
        "gpu": compared.gpu,
        "profile": compared.profile.digest,
        "passes": counters.passes,
        "notes": list(counters.notes),
        "kernels_outside_ops": counters.num_outside,
        "environment": counters.environment,
        "median_absolute_hit_error": compared.median_absolute_hit_error,
        "without_kernels": list(compared.without_kernels),
        "ops": [_as_data(one) for one in compared.ops],
        "total": _as_data(compared.total),
    }


def print_compared(compared: CountersCompared, out: Console) -> None:
    """Ops of all layers and microbatches together, the step, and what to know about the figures."""
    counters = compared.counters
    made = tables.table(
        f"{counters.name}: HBM in MB, hits in % ({counters.environment.get('gpu')})",
        "op",
        "reads\nmodel",
        "\nGPU",
        "\nerror",
        "writes\nmodel",
        "\nGPU",
        "hits\nmodel",
        "\nGPU",
        "\nerror",
        "GPU: of\nlookups",
        "of SM\nreads",
    )
    for one in compared.groups:
        label = f"{one.op} x{one.count}" if one.count > 1 else one.op
        made.add_row(escape(label), *_cells(one))
    made.add_row("all", *_cells(compared.total), style="bold")
    out.print(made)
    notes = [
        "model: predicted; GPU: counted",
        "hits: of the bytes that an op reads, those that did not come from HBM; error in points",
        f"median absolute error of hits {100 * compared.median_absolute_hit_error:.1f} points",
    ]
    if compared.without_kernels:
        names = ", ".join(compared.without_kernels[:3])
        notes.append(f"{len(compared.without_kernels)} ops ran no kernel: {names}")
    if counters.num_outside:
        notes.append(f"{counters.num_outside} kernels ran outside all ops and are left out")
    notes += counters.notes
    out.print(escape("; ".join(notes) + "."), style="dim")
    out.print()


def _require_known(counters: Counters, extra: Iterable[str]) -> None:
    names = sorted(extra)
    if names:
        raise TraceMismatchError(
            f"counters {counters.name!r}: {len(names)} ops are counted and not predicted: "
            f"{', '.join(names[:3])}; measure again with this version of layerwise"
        )


def _summed(label: str, each: Sequence[OpBytes]) -> OpBytes:
    counted = [one.counted for one in each if one.counted]
    return OpBytes(
        op=label,
        predicted=add_up(one.predicted for one in each),
        count=len(each),
        counted=add_counters(label, counted) if counted else None,
    )


def _as_data(one: OpBytes) -> dict[str, Any]:
    counted = one.counted
    return {
        "op": one.op,
        "count": one.count,
        "demand_bytes": one.demand_bytes,
        "predicted": asdict(one.predicted),
        "predicted_hit": one.predicted_hit,
        "counted_hit": one.counted_hit,
        "hit_error": one.hit_error,
        "counted": {
            "kernels": list(counted.kernels),
            "hbm_read_bytes": counted.hbm_read_bytes,
            "hbm_write_bytes": counted.hbm_write_bytes,
            "l2_lookup_bytes": counted.l2_lookup_bytes,
            "lookup_hit_share": counted.lookup_hit_share,
            "served_share": counted.served_share,
            "metrics": counted.metrics,
        }
        if counted
        else None,
    }


def _cells(one: OpBytes) -> tuple[str, ...]:
    counted, predicted = one.counted, one.predicted
    error = predicted.hbm_read_bytes / one.hbm_read_bytes - 1 if one.hbm_read_bytes else 0.0
    served = counted.served_share if counted else None
    return (
        _megabytes(predicted.hbm_read_bytes),
        _megabytes(one.hbm_read_bytes),
        _signed(error) if one.hbm_read_bytes else "",
        _megabytes(predicted.written_back_bytes),
        _megabytes(counted.hbm_write_bytes if counted else 0.0),
        _share(one.predicted_hit),
        _share(one.counted_hit),
        f"{100 * one.hit_error:+.1f}",
        _share(counted.lookup_hit_share) if counted else "",
        _share(served) if served is not None else "",
    )


def _megabytes(value_bytes: float) -> str:
    """To the kilobyte, or three digits."""
    value = value_bytes / MEGA
    if not value:
        return "0"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def _share(value: float) -> str:
    """Far below zero where a small op fetched what it does not read: no digits are worth showing."""
    return f"{100 * value:.1f}" if value > -10 else "< -999"


def _signed(error: float) -> str:
    return f"{100 * error:+.0f}%" if abs(error) < 10 else "> 999%"
