"""Nsight Compute: run a program under `ncu`, and read counters per kernel, named by NVTX range.

Nothing here needs torch or a GPU. Caches are not flushed and clocks are left alone. A program is
run again from its start for each pass that the metrics need (application replay): replaying one
kernel would find in the L2 what its own first run left there.

Source: Nsight Compute CLI and Kernel Profiling Guide, 2025.3 ("Replay", "NVTX Filtering").
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerwise.hw.errors import NotAvailableError
from layerwise.sim.plan.errors import LayerwiseError

# As hw.instrument.observe.DOMAIN, which imports torch.
DOMAIN = "layerwise"
_NAMED = re.compile(rf"(?<![^\s\"]){DOMAIN}:([^:\"]+)")
_PASSES = (re.compile(r"- (\d+) pass(?:es)?\b"), re.compile(r"Application replay pass (\d+)"))
_ERROR = re.compile(r"^==ERROR==\s*(.+)$", re.MULTILINE)
_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
# Units that ncu prints, in SI base units; sectors, instructions and the like are counts.
_UNITS = {
    **{f"{prefix}byte": scale for prefix, scale in _PREFIXES.items()},
    **{f"{prefix}sector": scale for prefix, scale in _PREFIXES.items()},
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "ns": 1e-9,
    "second": 1.0,
    "msecond": 1e-3,
    "usecond": 1e-6,
    "nsecond": 1e-9,
    "%": 0.01,
    "": 1.0,
}
# What ncu or the driver says, and what that means to whoever asked.
_KNOWN_PROBLEMS = {
    "ERR_NVGPUCTRPERM": (
        "the driver keeps hardware counters to administrators; run as root, or load the nvidia "
        "module with NVreg_RestrictProfilingToAdminUsers=0"
    ),
    "LibraryNotLoaded": (
        "ncu cannot load the driver's profiling library here, as on sandboxed machines (gVisor); "
        "use a machine whose driver is reached directly"
    ),
}


class CountersError(LayerwiseError):
    """Nsight Compute ran, and gave no counters that can be used."""


class MetricNotFoundError(CountersError):
    """This GPU, or this version of ncu, has no metric of that name."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One profiled kernel. `op`: its innermost range in the domain, empty outside all ranges.

    `metrics` by ncu's names, in bytes, seconds, ratios 0..1 and counts.
    """

    name: str
    op: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Profiled:
    """One run under ncu. `passes`: times the program ran for it; 0 where ncu did not say."""

    kernels: tuple[Kernel, ...]
    passes: int


def find_ncu(name: str = "ncu") -> str:
    """Where ncu lies. Raises NotAvailableError when it is not on the PATH."""
    found = shutil.which(name)
    if found is None:
        raise NotAvailableError(
            f"{name} is not on the PATH: counters are read by Nsight Compute; install it (it comes "
            "with the CUDA toolkit), or give its path with --ncu"
        )
    return found


def ncu_command(ncu: str, metrics: Sequence[str], log: Path, target: Sequence[str]) -> list[str]:
    """The command line that profiles what `target` runs between profiler start and stop."""
    return [
        ncu,
        "--target-processes",
        "all",
        "--profile-from-start",
        "off",
        "--cache-control",
        "none",
        "--clock-control",
        "none",
        "--replay-mode",
        "application",
        "--nvtx",
        "--metrics",
        ",".join(metrics),
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "--log-file",
        str(log),
        *target,
    ]


def profile(
    target: Sequence[str], metrics: Sequence[str], log: Path, *, ncu: str, timeout_s: float
) -> Profiled:
    """Run `target` under ncu and read the metrics of every kernel it marks. `log` is ncu's own.

    Raises NotAvailableError (no access to counters), MetricNotFoundError, CountersError (it failed,
    took longer than `timeout_s`, or profiled nothing), each in one line.
    """
    log.unlink(missing_ok=True)
    code, said = _run_bounded(ncu_command(ncu, metrics, log, target), timeout_s)
    logged = log.read_text(errors="replace") if log.exists() else ""
    _raise_known(f"{logged}\n{said}")
    if code:
        raise CountersError(f"ncu ended with code {code}: {_last_words(logged, said)}")
    kernels = tuple(parse_kernels(logged, metrics))
    if not kernels:
        raise CountersError(
            "no kernel ran between cudaProfilerStart and cudaProfilerStop; name other --ops: "
            f"{_last_words(logged, said)}"
        )
    if not any(kernel.op for kernel in kernels):
        raise CountersError(
            f"{len(kernels)} kernels were profiled and none is in an NVTX range of the domain "
            f"{DOMAIN!r}; look at the ranges that ncu saw, with --logs DIR"
        )
    return Profiled(kernels, parse_passes(logged))


def parse_passes(log: str) -> int:
    """The most passes that any kernel took, or times that the program was run; 0: not said."""
    return max((int(n) for found in _PASSES for n in found.findall(log)), default=0)


def parse_kernels(log: str, metrics: Iterable[str]) -> Iterator[Kernel]:
    """Kernels in the CSV of `--page raw`: a header, a row of units, a row per kernel.

    Columns may come in any order, numbers with thousands separators. Raises CountersError for a
    metric without a column, a value that is no number, a unit that is not known.
    """
    header, units, rows = _table(log)
    wanted = list(metrics)
    missing = [name for name in wanted if name not in header]
    if header and missing:
        raise CountersError(f"ncu's CSV has no column {missing[0]}; its columns: {header}")
    ranges = [name for name in header if "range" in name.lower()]
    for row in rows:
        name = row["Kernel Name"]
        yield Kernel(
            name,
            _op_of(row[column] for column in ranges),
            {each: _value(row[each], units.get(each, ""), each, name) for each in wanted},
        )


def _table(log: str) -> tuple[list[str], dict[str, str], list[dict[str, str]]]:
    """(header, units, rows of kernels); all empty where the log holds no table."""
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("==")]
    # What the target prints may come first.
    start = next((at for at, line in enumerate(lines) if "Kernel Name" in line), len(lines))
    header, *cells = list(csv.reader(lines[start:])) or [[]]
    rows = [dict(zip(header, each, strict=False)) for each in cells if len(each) == len(header)]
    units = next((row for row in rows if not row["Kernel Name"]), {})
    return header, units, [row for row in rows if row["Kernel Name"]]


def _op_of(ranges: Iterable[str]) -> str:
    """The innermost range of our domain.

    Written as `thread  "domain:message:payload...:message"`, outer ranges first.
    """
    found = [name for cell in ranges for name in _NAMED.findall(cell)]
    return found[-1] if found else ""


def _value(text: str, unit: str, metric: str, kernel: str) -> float:
    if unit not in _UNITS:
        raise CountersError(f"{metric} comes in the unit {unit!r}; known are {sorted(_UNITS)}")
    try:
        return float(text.replace(",", "")) * _UNITS[unit]
    except ValueError as error:
        raise CountersError(f"{metric}={text!r} of kernel {kernel} is not a number") from error


def _run_bounded(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """(exit code, what it printed). Raises CountersError when it took too long; nothing is left."""
    with subprocess.Popen(  # noqa: S603 - ncu as it was found, and this program
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise CountersError(
                f"ncu took longer than {timeout_s:.0f} s and was ended; use --timeout-s, or fewer "
                "--ops"
            ) from error
        finally:
            # ncu and the target are one session of their own: on any way out both are ended.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def _raise_known(text: str) -> None:
    for mark, meaning in _KNOWN_PROBLEMS.items():
        if mark in text:
            raise NotAvailableError(f"{meaning} (ncu: {mark})")
    found = re.search(r"Failed to find metric (?:regex:)?\^?([\w.\\]+)", text)
    if found:
        name = found[1].replace("\\", "").rstrip(".")
        raise MetricNotFoundError(f"this GPU or this ncu has no metric {name}")


def _last_words(logged: str, said: str) -> str:
    """ncu's own errors, and the last line that the target printed."""
    errors: list[str] = _ERROR.findall(f"{logged}\n{said}")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = [line for line in lines if not line.startswith("==")][-1:]
    return "; ".join([*errors, *last]) or "it said nothing"
