"""A calibration profile: the constants of one GPU type, each with where it came from.

Profiles are JSON files written by `layerwise.calibration.fit` and shipped in `calibration/profiles`. Nothing
here measures or fits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import FileFormatError, ProfileMismatchError, SpecError
from layerwise.sim.plan.hardware import MAX_QUANTITY, ClusterSpec
from layerwise.sim.plan.reading import read_json
from layerwise.sim.residuals import ErrorScale, Nearby, ResidualPoint, ResidualTable
from layerwise.sim.trace import write_atomically

PROFILE_FORMAT = "layerwise-profile"
PROFILE_VERSION = 3
# Version 2 says how well kinds of op were predicted, and nothing about whole steps: twice what their
# ops carry, more than either shipped profile needed.
MIGRATED_STEP_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One fitted value with its standard error (same unit) and its source.

    `num_points`: how many readings it rests on; 0 where nobody counted. `valid`: where it holds, in
    words. Both are optional: a file of version 3 without them reads as before.
    """

    __pydantic_config__ = {"extra": "forbid"}

    value: float
    standard_error: float
    unit: str
    source: str
    num_points: int = 0
    valid: str = ""


class _Values(dict[str, float]):
    """Constants by name; a file may lack one that the form of its kind needs."""

    def __missing__(self, name: str) -> float:
        raise SpecError(f"constants.{name}", None, "is missing from the profile", "calibrate again")


@dataclass(frozen=True, kw_only=True)
class OpFit:
    """How one kind of op is timed: a physics form's constants and what remains around it.

    `valid` gives (lowest, highest) calibrated value of each feature, in the features' order and
    units (not logarithms). Errors are |predicted / measured - 1|, of the fit and of points left
    out of it. `error_scale`: how wide intervals are; None where nothing was held out.
    What its points had in common: `kernels` (none named: the profile's own choice for this kind),
    `head_dims`, and `dtypes` computed in. All three are optional: older files read as before.
    """

    __pydantic_config__ = {"extra": "forbid"}

    constants: dict[str, Constant]
    residuals: tuple[ResidualPoint, ...] = ()
    features: tuple[str, ...] = ()
    valid: tuple[tuple[float, float], ...] = ()
    num_points: int = 0
    form_median_error: float = 0.0
    held_out_median_error: float = 0.0
    held_out_p90_error: float = 0.0
    error_scale: ErrorScale | None = None
    kernels: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = (128,)
    dtypes: tuple[str, ...] = ("bfloat16",)

    @cached_property
    def values(self) -> dict[str, float]:
        """The bare constants. Looking up one that is not there raises SpecError."""
        return _Values({name: constant.value for name, constant in self.constants.items()})

    @cached_property
    def _table(self) -> ResidualTable:
        return ResidualTable(self.residuals)

    @cached_property
    def _seen(self) -> dict[tuple[float, ...], Nearby]:
        return {}

    def with_constants(self, constants: dict[str, Constant]) -> OpFit:
        """Return the same fit with other constants of its form; what was measured is shared, not copied."""
        moved = replace(self, constants=constants)
        # What is cached follows from the residuals alone. A frozen dataclass keeps it in its __dict__.
        moved.__dict__.update(_table=self._table, _seen=self._seen)
        return moved

    def nearby(self, place: tuple[float, ...]) -> Nearby:
        """What was measured nearest to this place; remembered, for it is searched."""
        found = self._seen.get(place)
        if found is None:
            found = self._seen[place] = self._table.look(place)
        return found

    def correction(self, place: tuple[float, ...]) -> float:
        """Measured over form at the points nearest to this one."""
        return math.exp(self.nearby(place).log_ratio)

    def half_width(self, place: tuple[float, ...]) -> float:
        """Of the 90 % interval of one op here, as ln(measured / predicted)."""
        return self.error_scale.half_width(self.nearby(place)) if self.error_scale else 0.0

    def inside(self, features: tuple[float, ...]) -> bool:
        """Is this shape inside what was calibrated?"""
        return all(
            low <= value <= high for value, (low, high) in zip(features, self.valid, strict=True)
        )

    def is_beyond(self, features: tuple[float, ...], place: tuple[float, ...]) -> bool:
        """Outside the calibrated ranges, or farther from every point than any that was scored?"""
        far = self.error_scale is not None and self.error_scale.is_far(self.nearby(place))
        return far or not self.inside(features)


@dataclass(frozen=True, kw_only=True)
class Regime:
    """`latency_s + payload / bytes_per_s`, for payloads from `from_bytes` up."""

    __pydantic_config__ = {"extra": "forbid"}

    from_bytes: int
    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class TransferFit:
    """Time of a message or a collective against its payload, regime by regime."""

    __pydantic_config__ = {"extra": "forbid"}

    regimes: tuple[Regime, ...]
    source: str
    median_error: float = 0.0

    def regime(self, payload_bytes: int) -> Regime:
        """The regime that holds for this payload."""
        holding = [r for r in self.regimes if r.from_bytes <= payload_bytes]
        return holding[-1] if holding else self.regimes[0]

    @property
    def half_width(self) -> float:
        """Of the 90 % interval, as ln(measured / predicted): a Laplace law with this median.

        Source: its quantiles, -ln(1 - share) times its scale; held-out errors of ops follow it.
        """
        return self.median_error * math.log(10) / math.log(2)

    def seconds(self, payload_bytes: int) -> float:
        """Time of one transfer with nothing else on the wire."""
        regime = self.regime(payload_bytes)
        return regime.latency_s + payload_bytes / regime.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class PowerFit:
    """What a GPU draws, and the clock that its power limit leaves it: see `layerwise.sim.cost.power`.

    Half-widths of 90 % intervals, as ln(measured / predicted): `clock_half_width` of a held clock,
    `slowdown_half_width` of sustained over burst times of what it holds (HBM's ops hardly notice
    it), `energy_half_width` of energy and power.
    """

    __pydantic_config__ = {"extra": "forbid"}

    constants: dict[str, Constant]
    clock_half_width: float
    slowdown_half_width: float
    energy_half_width: float

    @cached_property
    def values(self) -> dict[str, float]:
        """The bare constants. Looking up one that is not there raises SpecError."""
        return _Values({name: constant.value for name, constant in self.constants.items()})


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All constants the calibrated simulator uses for one GPU type.

    `fits`: by op kind. `transfers`: `send.nvlink4`, `send.ndr400`, `all_reduce.nccl.8`,
    `all_reduce.one_shot.8`, `all_gather.nccl.8`, ... `reserved_bytes`: memory the context, the
    libraries and graphs take on each GPU.
    `step_factor`: how much whole steps scatter over what the errors of their ops would have them.
    `power`: None where nobody measured it; then every clock is taken to be the full one.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    gpu: str
    kernels: KernelChoice
    provenance: dict[str, str]
    fits: dict[str, OpFit]
    transfers: dict[str, TransferFit]
    machine: dict[str, Constant]
    reserved_bytes: int = 0
    step_factor: float = 1.0
    data_hashes: dict[str, str] = field(default_factory=dict)
    power: PowerFit | None = None

    @cached_property
    def in_a_row(self) -> Profile:
        """The same for ops in a row of their own kind, as a sweep repeats them."""
        return replace(self, machine=self.machine | no_interleaving(self.machine))

    @property
    def digest(self) -> str:
        """Short hash of everything in it."""
        text = json.dumps(_as_data(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def check_gpu(self, cluster: ClusterSpec) -> None:
        """Raise ProfileMismatchError when the cluster's GPU is another one."""
        if cluster.gpu.name != self.gpu:
            raise ProfileMismatchError(
                f"profile {self.name!r} was measured on {self.gpu} and cluster.gpu is "
                f"{cluster.gpu.name}; give a profile for {cluster.gpu.name} (layerwise calibrate), "
                "or ask for the speed of light only"
            )


def no_interleaving(machine: Mapping[str, Constant]) -> dict[str, Constant]:
    """Ops cost what the sweep says, in an L2 that keeps what the read curve says."""
    zero = Constant(value=0.0, standard_error=0.0, unit="", source="none")
    return {
        "interleaved_s": zero,
        "interleaved_code_s": zero,
        "interleaved_hbm_s": zero,
        "interleaved_full_hit": machine["l2_full_hit"],
        "interleaved_no_hit": machine["l2_no_hit"],
    }


def load_profile(path: Path) -> Profile:
    """Read a profile. Raises FileFormatError for another format or version."""
    from layerwise.sim.plan.files import validate  # pydantic is needed only where files are read

    try:
        data = read_json(path)
    except FileFormatError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise FileFormatError(f"{path}: cannot be read as a profile: {why}") from error
    if not isinstance(data, dict) or data.pop("format", None) != PROFILE_FORMAT:
        raise FileFormatError(f"{path}: does not say format={PROFILE_FORMAT!r}; is it a profile?")
    version = data.pop("version", None)
    if version == 2:
        return _with_intervals(_checked(validate(Profile, data, str(path)), str(path)))
    if version != PROFILE_VERSION:
        raise FileFormatError(
            f"{path}: profile version {version!r}, this program reads {PROFILE_VERSION}, and 2 with "
            "wider intervals; calibrate again"
        )
    return _checked(validate(Profile, data, str(path)), str(path))


def _checked(profile: Profile, source: str) -> Profile:
    """Raise SpecError for what no fit writes: rates that are not positive, ranges of no feature."""
    for kind, fit in profile.fits.items():
        if len(fit.valid) != len(fit.features):
            raise SpecError(
                f"fits.{kind}.valid",
                fit.valid,
                f"is not of features={fit.features}",
                "give (lowest, highest) of each",
                source,
            )
        for name, constant in fit.constants.items():
            _require_usable(f"fits.{kind}.constants.{name}", constant, source)
    for name, constant in profile.machine.items():
        _require_usable(f"machine.{name}", constant, source)
    for name, constant in (profile.power.constants if profile.power else {}).items():
        _require_usable(f"power.constants.{name}", constant, source)
    for name, fit in profile.transfers.items():
        if not fit.regimes or not all(r.bytes_per_s > 0 <= r.latency_s for r in fit.regimes):
            raise SpecError(
                f"transfers.{name}.regimes",
                fit.regimes,
                "are no regimes",
                "give latencies from 0 and rates above 0",
                source,
            )
    return profile


def _require_usable(key: str, constant: Constant, source: str) -> None:
    is_rate = key.endswith(("_per_s", ".efficiency"))
    if abs(constant.value) > MAX_QUANTITY or (is_rate and not constant.value >= 1e-6):
        raise SpecError(
            f"{key}.value", constant.value, "is no constant of a machine", "calibrate again", source
        )


def _with_intervals(profile: Profile) -> Profile:
    """A profile of version 2: its held-out 90th percentiles are constant half-widths."""
    fits = {
        kind: replace(fit, error_scale=ErrorScale.constant(math.log1p(fit.held_out_p90_error)))
        for kind, fit in profile.fits.items()
    }
    return replace(profile, fits=fits, step_factor=MIGRATED_STEP_FACTOR)


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile, whole or not at all, one constant a line for people who read it."""
    data = {"format": PROFILE_FORMAT, "version": PROFILE_VERSION, **_as_data(profile)}
    write_atomically(path, _dump(data) + "\n")


def _as_data(profile: Profile) -> dict[str, Any]:
    """As data, without what an optional field does not say: older files keep their digest."""
    return asdict(profile, dict_factory=_without_silent)


# What later versions added, by a field that only their own table has.
_LATER: dict[str, tuple[type, frozenset[str]]] = {
    "standard_error": (Constant, frozenset({"num_points", "valid"})),
    "held_out_p90_error": (OpFit, frozenset({"kernels", "head_dims", "dtypes"})),
    "step_factor": (Profile, frozenset({"power"})),
}


def _without_silent(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    for mark, (kind, names) in _LATER.items():
        if mark in found:
            usual = {f.name: f.default for f in fields(kind) if f.name in names}
            return {k: v for k, v in items if k not in usual or v != usual[k]}
    return found


def _dump(value: object, indent: int = 0, depth: int = 4) -> str:
    """JSON with nested objects opened `depth` levels and everything below on one line."""
    if not isinstance(value, dict) or depth == 0:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            pad = " " * (indent + 1)
            return "[\n" + ",\n".join(pad + json.dumps(v) for v in value) + "\n" + pad[1:] + "]"
        return json.dumps(value)
    pad = " " * (indent + 1)
    items = [f"{pad}{json.dumps(k)}: {_dump(v, indent + 1, depth - 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(items) + "\n" + pad[1:] + "}"
