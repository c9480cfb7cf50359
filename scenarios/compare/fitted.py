"""Which of a run's op shapes are among the points that a profile was fitted to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from layerwise.sim.cost.kinds import kind_named, kind_of
from layerwise.sim.plan.ops import LocalOp
from layerwise.sim.plan.program import Program
from layerwise.sim.profile import OpFit, Profile

# Profiles keep places to so many digits.
PLACE_DIGITS = 4

Shape = tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class FittedShapes:
    """Distinct shapes of local ops in a run, and the names of those that the fit has seen.

    A shape is what its kind is fitted on: `matmul rows=8 columns=4096 inner=4096`.
    """

    num_shapes: int = 0
    names: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        """Has the fit seen every one?"""
        return 0 < self.num_shapes == len(self.names)

    @property
    def told(self) -> str:
        """The sentence of a report."""
        return f"{len(self.names)} of {self.num_shapes} op shapes were fitted"


def fitted_shapes(programs: Iterable[Program], profile: Profile) -> FittedShapes:
    """Look up every distinct shape of these programs among the profile's points."""
    segments = {id(part.segment): part.segment for one in programs for part in one.parts}
    shapes: dict[Shape, None] = {}
    for segment in segments.values():
        for op in segment.ops:
            if isinstance(op, LocalOp):
                kind = kind_of(op, profile.fits)
                shapes[kind.name, kind.features_of(op)] = None
    places = {kind: _places(fit) for kind, fit in profile.fits.items()}
    seen = [shape for shape in shapes if _place(*shape) in places.get(shape[0], ())]
    return FittedShapes(len(shapes), tuple(_name(*shape) for shape in seen))


def _places(fit: OpFit) -> set[tuple[float, ...]]:
    """Without the last coordinate, which tells how warm the L2 was."""
    return {tuple(round(v, PLACE_DIGITS) for v in point.place[:-1]) for point in fit.residuals}


def _place(kind: str, features: tuple[float, ...]) -> tuple[float, ...]:
    place = kind_named(kind).place_of(features, 0.0)
    return tuple(round(value, PLACE_DIGITS) for value in place[:-1])


def _name(kind: str, features: tuple[float, ...]) -> str:
    names = kind_named(kind).features
    parts = (f"{n}={v:g}" for n, v in zip(names, features, strict=True))
    return f"{kind} {' '.join(parts)}"
