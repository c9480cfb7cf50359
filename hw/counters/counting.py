"""Count what each op reads from L2 and HBM, by running one rank's steady step under Nsight Compute.

Hardware counters to hold the simulator's L2 against. `hw.counters.__main__` is what runs under ncu:
several steps issued eagerly, then one that is profiled, each op under its NVTX range; or reads
repeated over one buffer.

What to know about these numbers:
- Each metric group is a run of its own, and where one pass is not enough the whole program runs
  again (application replay), so that the caches are always as earlier steps left them.
- ncu lets kernels run one by one, with work of its own between them. It touches little memory, but
  overlap and times are not those of a free run: only bytes and hits are to be compared.
- A lookup is not a demand: a matmul's rows are read by many SMs, and each read counts. And an SM
  asks the L2 half next to it, which may ask the other half: `lts__t_sectors_op_read` counts both.
  What left HBM is `dram__bytes_read`; the `partitions` group tells whether a read was served by
  either half.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerwise.hw.counters.ncu import CountersError, Kernel, find_ncu, profile
from layerwise.hw.counters.op_counters import (
    FORMAT,
    GROUPS,
    OPTIONAL_GROUPS,
    VERSION,
    Counters,
    join,
)
from layerwise.sim.plan.errors import LayerwiseError, SpecError
from layerwise.sim.plan.units import parse_whole
from layerwise.sim.trace import as_data, write_atomically

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run under ncu, and how: a scenario file of one rank, or reads over buffers.

    `working_set` is sizes with commas between, `ops` the names of ops to profile alone, `steps` how
    many steps or passes come before the profiled one, `timeout_s` bounds one run of ncu, `logs` is
    a folder that keeps what ncu wrote. Raises SpecError where not exactly one thing is named.
    """

    scenario: Path | None = None
    working_set: str = ""
    ops: str = ""
    steps: int = 5
    ncu: str = "ncu"
    timeout_s: float = 120.0
    logs: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.scenario) == bool(self.working_set):
            named = None if self.scenario is None else str(self.scenario)
            raise SpecError(
                "SCENARIO.toml/--working-set",
                named,
                "is not one thing to profile",
                "name a scenario file, or sizes with --working-set, or use --all",
            )
        if self.steps < 1:
            raise SpecError("--steps", self.steps, "warms nothing up", "use 1 or more")

    @property
    def name(self) -> str:
        """What the counters are called where nothing in a scenario file names them."""
        return self.scenario.stem if self.scenario else f"reads-{self.working_set}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What runs under ncu, as one argument of its process. `report`: the file it leaves."""

    report: str
    warm_ups: int
    scenario: str
    ops: Sequence[str]
    working_sets_bytes: Mapping[str, int]

    @property
    def command(self) -> list[str]:
        """The command line that starts it."""
        return [sys.executable, "-m", "layerwise.hw.counters", json.dumps(asdict(self))]


def count(request: Request, tell: Tell) -> Counters:
    """Run the target once per metric group, and join the kernels of all by op.

    Raises NotAvailableError, CountersError, and SpecError for a scenario that cannot be profiled.
    """
    from layerwise.hw.counters.profiled import check_scenario
    from layerwise.sim.plan.files import load_scenario

    scenario = load_scenario(request.scenario) if request.scenario else None
    if scenario:
        check_scenario(scenario)
    sizes = working_sets(request.working_set)
    name = scenario.name if scenario else request.name.replace(",", "-")
    ncu = find_ncu(request.ncu)
    found: dict[str, tuple[Kernel, ...]] = {}
    passes: dict[str, int] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        target = Target(
            report=str(Path(folder) / "target.json"),
            warm_ups=request.steps,
            scenario=str(request.scenario or ""),
            ops=listed(request.ops),
            working_sets_bytes=sizes,
        )
        for group, metrics in GROUPS.items():
            tell(f"counters: {name}: ncu counts {group}, at most {request.timeout_s:.0f} s")
            try:
                log = (request.logs or Path(folder)) / f"{name}.{group}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                run = profile(target.command, metrics, log, ncu=ncu, timeout_s=request.timeout_s)
                _require_alike(group, run.kernels, found)
            except CountersError as error:
                if group not in OPTIONAL_GROUPS:
                    raise
                notes.append(f"without the metrics of {group!r}: {error}")
                continue
            found[group], passes[group] = run.kernels, run.passes
        said = json.loads(Path(target.report).read_text(encoding="utf-8"))
    return Counters(
        name=name,
        scenario=as_data(scenario) if scenario else {},
        ops_run=tuple(said["ops"]),
        working_sets_bytes=sizes,
        ops=join(found),
        passes=passes,
        warm_ups=request.steps,
        notes=tuple(notes),
        num_outside=sum(not kernel.op for kernel in found["memory"]),
        environment=said["environment"] | {"ncu": _version_of(ncu)},
    )


def count_to(request: Request, out: Path, tell: Tell) -> dict[str, Any]:
    """Count and write the counters; returns what the file holds, in numbers. Raises as `count`."""
    counters = count(request, tell)
    data = {"format": FORMAT, "version": VERSION} | asdict(counters)
    write_atomically(out, json.dumps(data, indent=1) + "\n")
    num_kernels = sum(len(op.kernels) for op in counters.ops)
    notes = "".join(f"; {note}" for note in counters.notes)
    tell(f"{out}: {len(counters.ops)} ops, {num_kernels} kernels, passes {counters.passes}{notes}")
    return {
        "counters": str(out),
        "num_ops": len(counters.ops),
        "num_kernels": num_kernels,
        "passes": counters.passes,
        "notes": list(counters.notes),
    }


def count_each(requests: Sequence[Request], out_dir: Path, tell: Tell) -> list[dict[str, Any]]:
    """Count each request into `out_dir`/NAME.json, going on after one that fails.

    Returns what each file holds, or the `problem`. Raises NotAvailableError without ncu.
    """
    find_ncu(requests[0].ncu)
    outcomes: list[dict[str, Any]] = []
    for request in requests:
        try:
            outcomes.append(count_to(request, out_dir / f"{request.name}.json", tell))
        except LayerwiseError as error:
            outcomes.append({"counters": None, "name": request.name, "problem": str(error)})
            tell(f"{request.name}: {type(error).__name__}: {error}")
    num_written = sum(outcome["counters"] is not None for outcome in outcomes)
    tell(f"{num_written} of {len(requests)} written to {out_dir}")
    return outcomes


def working_sets(text: str) -> dict[str, int]:
    """`32MB,48MiB` as bytes by op name. Raises SpecError for a size the read kernel cannot take."""
    sizes: dict[str, int] = {}
    for each in listed(text):
        size = parse_whole("working_set_bytes", each)
        if size <= 0 or size % 16:
            raise SpecError(
                "--working-set", each, "is not a positive multiple of 16 bytes", "use 32MB"
            )
        sizes[f"read.{each}"] = size
    return sizes


def listed(text: str) -> list[str]:
    """Names with commas between, as a list."""
    return [each.strip() for each in text.split(",") if each.strip()]


def _require_alike(
    group: str, kernels: Sequence[Kernel], before: Mapping[str, Sequence[Kernel]]
) -> None:
    """Two runs whose ops have other kernels cannot be joined: autotuning chose anew, perhaps."""
    here = sorted((kernel.op, kernel.name) for kernel in kernels)
    for other, found in before.items():
        if here != sorted((kernel.op, kernel.name) for kernel in found):
            raise CountersError(f"the run of {group!r} had other kernels than that of {other!r}")


def _version_of(ncu: str) -> str:
    said = subprocess.run(  # noqa: S603 - found on the PATH, or named by the user
        [ncu, "--version"], capture_output=True, text=True, timeout=30, check=False
    ).stdout.strip()
    return said.splitlines()[-1] if said else "unknown"
