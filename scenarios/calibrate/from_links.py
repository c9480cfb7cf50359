"""Give a profile the messages and collectives that `layerwise links` timed on its GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from layerwise.calibration.data import file_hash, profile_path
from layerwise.calibration.links import LinkTimings, fit_links, mean_error, read_links
from layerwise.scenarios.calibrate.fitting import require_scipy
from layerwise.scenarios.measure.diagnosis import SPEC_OF_NAME
from layerwise.scenarios.tables import escape, percent, table
from layerwise.sim.plan.errors import FileFormatError, ProfileMismatchError, SpecError
from layerwise.sim.plan.hardware import GPUS, GpuSpec, usual_wires
from layerwise.sim.plan.reading import read_json
from layerwise.sim.profile import Profile, TransferFit, load_profile, write_profile

# Pairs that are not: PCIe, or another host. Where NVML was missing nobody knows.
UNKNOWN_WAY = "one host"


@dataclass(frozen=True, kw_only=True)
class LinkRefit:
    """A transfer fitted again. Errors are means of |predicted / measured - 1| on held-out payloads.

    None: the base profile had none (`old_error`), or nothing was held out.
    """

    name: str
    timings: LinkTimings
    fit: TransferFit
    old_error: float | None
    new_error: float | None


def profile_from_links(
    links: Path, base: Path | None, gpu: str, out: Path, console: Console
) -> str:
    """Write the base profile with the file's transfers in place of its own; returns a sentence.

    `base` None: the shipped profile of `gpu`; `gpu` "": the base's, or the one the file names.
    Raises FileFormatError for a file that is none, was cut short, or has no graphs of a GPU;
    ProfileMismatchError for another GPU's, SpecError, MissingPackageError without scipy.
    """
    require_scipy()
    head = _head(links)
    profile = _base(base, gpu, head["environment"])
    spec = GPUS.get(profile.gpu)
    if spec is None:
        raise SpecError(
            "--profile",
            profile.gpu,
            "is of a GPU without a datasheet here",
            f"use a profile of {', '.join(GPUS)}",
            str(base),
        )
    _check_gpu(links, head, spec)
    refits = refits_of(links, profile, spec, head["environment"])
    made = with_links(profile, refits, links, head)
    print_refits(refits, head, profile, console)
    write_profile(made, out)
    return (
        f"{out}: {len(refits)} transfers of {links} on {profile.name}, digest {profile.digest} -> "
        f"{made.digest}"
    )


def refits_of(
    links: Path, profile: Profile, spec: GpuSpec, environment: Mapping[str, str]
) -> list[LinkRefit]:
    """Every transfer of the file that a profile holds. Raises FileFormatError for none."""
    found = {
        name: timings
        for name, timings in read_links(links, usual_wires(spec.name)[0].name).items()
        if timings.fit
    }
    if not found:
        raise FileFormatError(
            f"{links}: has no timings in graphs to fit; measure again with --modes graph"
        )
    fits = fit_links(found, source_of(links, environment))
    return [
        LinkRefit(
            name=name,
            timings=timings,
            fit=fits[name],
            old_error=_error(profile.transfers.get(name), timings),
            new_error=_error(fits[name], timings),
        )
        for name, timings in found.items()
    ]


def source_of(links: Path, environment: Mapping[str, str]) -> str:
    """Where the timings come from, for each fit to carry."""
    nvls = environment.get("NCCL_NVLS_ENABLE", "as NCCL chooses")
    day = environment.get("date_utc", "undated")[:10]
    return (
        f"{environment.get('gpu', 'an unnamed GPU')}, NCCL {environment.get('nccl', '?')} in "
        f"graphs, NCCL_NVLS_ENABLE {nvls}, {day}: {links.name}"
    )


def with_links(
    profile: Profile, refits: list[LinkRefit], links: Path, head: Mapping[str, Any]
) -> Profile:
    """The profile with these transfers; what the file does not hold stays as it was."""
    day = head["environment"].get("date_utc", "undated")[:10]
    said = {
        "links": f"{source_of(links, head['environment'])}, {head['num_ranks']} ranks, "
        f"{len(refits)} transfers",
        "links_onto": f"{profile.name}, digest {profile.digest}",
    }
    return replace(
        profile,
        name=f"{profile.name}, with links of {day}",
        transfers=profile.transfers | {one.name: one.fit for one in refits},
        provenance=profile.provenance | said,
        data_hashes=profile.data_hashes | {f"links/{links.name}": file_hash(links)},
    )


def print_refits(
    refits: list[LinkRefit], head: Mapping[str, Any], old: Profile, console: Console
) -> None:
    """Old against new on held-out payloads, then what stays and what was not timed."""
    made = table(
        "Messages and collectives: mean error on held-out payloads",
        "transfer",
        "fitted",
        "held out",
        "largest GB/s",
        "old",
        "new",
    )
    for one in refits:
        size, seconds = max((*one.timings.fit, *one.timings.score))
        made.add_row(
            one.name,
            str(len(one.timings.fit)),
            str(len(one.timings.score)),
            f"{size / seconds / 1e9:.1f}",
            _shown(one.old_error),
            _shown(one.new_error),
        )
    console.print(made)
    kept = sorted(old.transfers.keys() - {one.name for one in refits})
    if kept:
        console.print(f"Kept from {escape(old.name)}: {escape(', '.join(kept))}.")
    for one in head.get("refused", ()):
        told = f"{one['op']} of ranks {one['ranks']}, {one['mode']}: {one['reason']}"
        console.print(f"Not timed there: {escape(told)}")


def _shown(error: float | None) -> str:
    return "-" if error is None else percent(error)


def _error(fit: TransferFit | None, timings: LinkTimings) -> float | None:
    return mean_error(fit, timings.score) if fit and timings.score else None


def _head(links: Path) -> dict[str, Any]:
    """The file, if it is whole and of GPUs. Raises FileFormatError."""
    data = read_json(links)
    if not isinstance(data, dict) or data.get("format") != "layerwise-links":
        raise FileFormatError(
            f"{links}: is no file of `layerwise links` that says where it was measured; "
            "measure again with this version"
        )
    wanted = ("environment", "num_ranks", "num_series", "num_series_done", "pairs", "timings")
    if missing := [key for key in wanted if key not in data]:
        raise FileFormatError(f"{links}: lacks {', '.join(missing)}; measure again")
    device = data["environment"].get("device")
    if device != "cuda":
        raise FileFormatError(
            f"{links}: was timed on device={device!r}, and a profile is of GPUs; measure on them"
        )
    if data["num_series_done"] != data["num_series"]:
        raise FileFormatError(
            f"{links}: was cut short, {data['num_series_done']} of {data['num_series']} series; "
            "measure again with a larger --budget-s"
        )
    return data


def _base(base: Path | None, gpu: str, environment: Mapping[str, str]) -> Profile:
    """Raises SpecError where no GPU is named and none is known, or none is shipped for it."""
    if base is not None:
        profile = load_profile(base)
        if gpu and gpu != profile.gpu:
            raise ProfileMismatchError(
                f"profile {profile.name!r} is of {profile.gpu} and --gpu is {gpu}; give one of them"
            )
        return profile
    named = gpu or SPEC_OF_NAME.get(environment.get("gpu", ""), "")
    if not named:
        raise SpecError(
            "--gpu",
            environment.get("gpu"),
            "is no GPU known by this name",
            f"name one of {', '.join(GPUS)}, or a base with --profile",
        )
    if not profile_path(named).exists():
        raise SpecError(
            "--profile",
            None,
            f"is missing, and none is shipped for {named}",
            "give the profile to put them into with --profile FILE",
        )
    return load_profile(profile_path(named))


def _check_gpu(links: Path, head: Mapping[str, Any], spec: GpuSpec) -> None:
    """Raise ProfileMismatchError for links of other GPUs, or of another wire than the GPU's own."""
    environment = head["environment"]
    found = environment.get("gpu", "an unnamed GPU")
    known = SPEC_OF_NAME.get(found, spec.name)
    alike = all(
        environment.get(key) == str(expected)
        for key, expected in (("num_sms", spec.num_sms), ("l2_bytes", spec.l2_bytes))
    )
    if known != spec.name or not alike:
        raise ProfileMismatchError(
            f"{links}: was timed on {found} ({environment.get('num_sms')} SMs, L2 of "
            f"{environment.get('l2_bytes')} bytes) and the profile is of {spec.name}; give a "
            "profile of the GPUs that were timed"
        )
    ways = sorted({str(pair["joined_by"]) for pair in head["pairs"]})
    if other := [way for way in ways if "NVLink" not in way and way != UNKNOWN_WAY]:
        raise ProfileMismatchError(
            f"{links}: ranks were joined by {', '.join(other)} and the profile's messages are of "
            f"{usual_wires(spec.name)[0].name}; measure on GPUs that NVLink joins"
        )
