"""Own timings of messages and collectives (`layerwise.hw.links`) -> regimes, and how well they hold.

Payloads marked "fit" are fitted; those marked "score" never are, and tell how far off a fit is:
this one, or one that was made before the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from layerwise.calibration.transfers import BREAKS, KIB, MIB, ONE_SHOT_BREAKS, fit_transfer
from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.plan.ops import ONE_SHOT_MAX_BYTES
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import TransferFit

FORMAT, VERSION = "layerwise-links", 1
# Where NCCL without in-switch reduction changed protocol on two H200s (traces/two-h200).
OWN_BREAKS = (0, 8 * KIB, 256 * KIB, 2 * MIB, 16 * MIB)

Timings = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LinkTimings:
    """(payload_bytes, seconds) of one kind of transfer: to fit, and kept apart to score."""

    fit: Timings
    score: Timings = ()


def read_links(
    path: Path,
    link: str = "nvlink4",
    mode: Literal["graph", "eager"] = "graph",
    *,
    everything: bool = False,
) -> dict[str, LinkTimings]:
    """The timings of `layerwise links` by the names that a profile's transfers have.

    `link` names what joins the first two ranks. Payloads up to ONE_SHOT_MAX_BYTES of a one-shot
    all-reduce take one shot, larger ones two, as in the engine. `everything`: also what no profile
    holds, by names in the same manner. Raises FileFormatError.
    """
    data = read_json(path)
    try:
        # The first version was a list of two ranks' own readings, in graphs.
        records = _first_version(data) if isinstance(data, list) else _timings(data, mode)
        found: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
        for record in records:
            name, use = _name(record, link), record["use"]
            if everything and not name:
                name = _other_name(record, link)
            if name and use in ("fit", "score"):
                parts = found.setdefault(name, ({}, {}))
                parts[use == "score"][int(record["payload_bytes"])] = float(record["median_s"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path}: is no file of link timings: {error!r}") from error
    return {name: LinkTimings(*map(_rising, parts)) for name, parts in sorted(found.items())}


def fit_links(links: Mapping[str, LinkTimings], source: str) -> dict[str, TransferFit]:
    """Fit each kind of transfer to the payloads it is fitted to. Raises FitError for none."""
    return {
        name: fit_transfer(timings.fit, source, ONE_SHOT_BREAKS if "one_shot" in name else breaks)
        for name, timings in links.items()
        for breaks in (BREAKS if name.startswith("send") else OWN_BREAKS,)
    }


def mean_error(fit: TransferFit, timings: Sequence[tuple[int, float]]) -> float:
    """Mean of |predicted / measured - 1| over (payload_bytes, seconds)."""
    return fmean(abs(fit.seconds(size) / seconds - 1) for size, seconds in timings)


def _name(record: Mapping[str, Any], link: str) -> str:
    """The transfer's name in a profile; empty for what no profile holds."""
    ranks, size = list(record["ranks"]), int(record["payload_bytes"])
    match record["op"]:
        case "send":
            return f"send.{link}" if ranks == [0, 1] else ""
        case "all_reduce" | "all_gather" as op:
            return f"{op}.nccl.{len(ranks)}"
        case "one_shot" if size <= ONE_SHOT_MAX_BYTES:
            return f"all_reduce.one_shot.{len(ranks)}"
        case "two_shot" if size > ONE_SHOT_MAX_BYTES:
            return f"all_reduce.one_shot.{len(ranks)}"
        case _:
            return ""


def _other_name(record: Mapping[str, Any], link: str) -> str:
    """What is measured beside a profile's transfers. A shot where the engine takes the other: none."""
    ranks: list[int] = list(record["ranks"])
    match record["op"]:
        case "send" | "bidirectional" as op:
            return f"{op}.{link}.{ranks[0]}-{ranks[1]}"
        case "ring":
            return f"ring.{link}.{len(ranks)}"
        case "reduce_scatter":
            return f"reduce_scatter.nccl.{len(ranks)}"
        case _:
            return ""


def _timings(data: Mapping[str, Any], mode: str) -> list[dict[str, Any]]:
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ValueError(f"it does not say format={FORMAT!r}, version={VERSION}")
    return [record for record in data["timings"] if record["mode"] == mode]


def _first_version(data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first, second = data
    return [
        {
            "op": op,
            "ranks": [0, 1],
            "payload_bytes": size,
            "use": "fit",
            "median_s": min(seconds, other),
        }
        for op in first
        for (size, seconds), (_, other) in zip(first[op], second[op], strict=True)
    ]


def _rising(timings: Mapping[int, float]) -> Timings:
    return tuple(sorted(timings.items()))
