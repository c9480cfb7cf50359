"""`python -m layerwise.hw.counters SCENARIO.toml --out counters.json`: what each op reads from L2 and HBM.

Hardware counters of one rank's steady step, to hold the simulator's L2 against. It starts itself
again under Nsight Compute: several steps issued eagerly, then one that is profiled, each op under
its NVTX range. `--working-set SIZE,...` profiles reads repeated over one buffer instead; `--all`
takes the scenarios that the project keeps for it, and two working sets.

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

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from layerwise.sim.plan.errors import LayerwiseError, MissingPackageError, SpecError
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.plan.units import parse_whole
from layerwise.sim.trace import as_data, write_atomically

WARM_UPS = 5
TIMEOUT_S = 120.0
ALL_WORKING_SETS = ("32MB", "48MB")
COMMITTED = Path(__file__).resolve().parents[2] / "scenarios" / "counters"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run under ncu, and how. `logs`: a folder that keeps what ncu wrote."""

    name: str
    target: tuple[str, ...]
    warm_ups: int = WARM_UPS
    ncu: str = "ncu"
    timeout_s: float = TIMEOUT_S
    logs: Path | None = None
    scenario: dict[str, Any] = field(default_factory=dict[str, Any])
    working_sets_bytes: dict[str, int] = field(default_factory=dict[str, int])


def count(request: Request) -> Counters:
    """Run the target once per metric group, and join the kernels of all by op.

    Raises NotAvailableError, CountersError.
    """
    ncu = find_ncu(request.ncu)
    found: dict[str, tuple[Kernel, ...]] = {}
    passes: dict[str, int] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "target.json"
        target = [*request.target, "--steps", str(request.warm_ups), "--report", str(report)]
        for group, metrics in GROUPS.items():
            try:
                log = (request.logs or Path(folder)) / f"{request.name}.{group}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                run = profile(target, metrics, log, ncu=ncu, timeout_s=request.timeout_s)
                _require_alike(group, run.kernels, found)
            except CountersError as error:
                if group not in OPTIONAL_GROUPS:
                    raise
                notes.append(f"without the metrics of {group!r}: {error}")
                continue
            found[group], passes[group] = run.kernels, run.passes
        said = json.loads(report.read_text(encoding="utf-8"))
    return Counters(
        name=request.name, scenario=request.scenario, ops_run=tuple(said["ops"]),
        working_sets_bytes=request.working_sets_bytes, ops=join(found), passes=passes,
        warm_ups=request.warm_ups, notes=tuple(notes),
        num_outside=sum(not kernel.op for kernel in found["memory"]),
        environment=said["environment"] | {"ncu": _version_of(ncu)},
    )  # fmt: skip


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


def _be_target(options: argparse.Namespace) -> None:
    from layerwise.hw.counters.profiled import cuda_window, read_buffers, run_scenario
    from layerwise.hw.host.environment import environment_of, sample_clocks
    from layerwise.hw.ranks.session import usable_device

    device, window = usable_device("cuda"), cuda_window()
    if options.working_set:
        sizes = working_sets(options.working_set)
        names = read_buffers(sizes, device, window, warm_ups=options.steps)
    else:
        scenario = _load(options.scenario)
        names = run_scenario(
            scenario, device, window, warm_ups=options.steps, only=_listed(options.ops)
        )
    environment = environment_of(device) | sample_clocks(device, "after")
    write_atomically(options.report, json.dumps({"ops": names, "environment": environment}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when `--all` went on after a failure; 2 with one line on what to change."""
    options = _parser().parse_args(arguments)
    try:
        if options.target:
            _be_target(options)
            return 0
        if options.all:
            return _count_all(options)
        if options.out is None:
            raise SpecError("--out", None, "is missing", "add --out counters.json")
        _write(count(_request(options)), options.out)
    except LayerwiseError as error:
        print(
            f"layerwise.hw.counters: {type(error).__name__}: {error}", file=sys.stderr, flush=True
        )
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layerwise.hw.counters", description=__doc__)
    add = parser.add_argument
    add("scenario", type=Path, nargs="?", help="a scenario file (TOML) of one rank, eager")
    add("--out", type=Path, help="the counters to write (.json)")
    add("--ops", default="", help="profile these ops alone (names, with commas)")
    add(
        "--steps",
        type=_positive,
        default=WARM_UPS,
        help="steps, or passes, before the profiled one",
    )
    add("--working-set", default="", help="profile reads over buffers of these sizes: 32MB,48MB")
    add("--all", action="store_true", help="all committed scenarios and two working sets")
    add("--out-dir", type=Path, help="where --all writes NAME.json")
    add("--folder", type=Path, default=COMMITTED, help="the scenarios of --all")
    add("--ncu", default="ncu", help="Nsight Compute's program")
    add("--timeout-s", type=float, default=TIMEOUT_S, help="bound of one run of ncu")
    add("--logs", type=Path, help="keep ncu's own logs here (--all: OUT_DIR/logs)")
    add("--target", action="store_true", help=argparse.SUPPRESS)
    add("--report", type=Path, help=argparse.SUPPRESS)
    return parser


def _request(options: argparse.Namespace) -> Request:
    """Raises SpecError when not exactly one thing is to be profiled, and for its own faults."""
    if bool(options.scenario) == bool(options.working_set):
        raise SpecError(
            "SCENARIO.toml/--working-set", str(options.scenario), "is not one thing to profile",
            "name a scenario file, or sizes with --working-set, or use --all",
        )  # fmt: skip
    module = (sys.executable, "-m", "layerwise.hw.counters", "--target")
    if options.working_set:
        sizes = working_sets(options.working_set)
        return Request(
            name=f"reads-{options.working_set.replace(',', '-')}", working_sets_bytes=sizes,
            target=(*module, "--working-set", options.working_set), warm_ups=options.steps,
            ncu=options.ncu, timeout_s=options.timeout_s, logs=options.logs,
        )  # fmt: skip
    from layerwise.hw.counters.profiled import check_scenario

    scenario = _load(options.scenario)
    check_scenario(scenario)
    ops = ("--ops", options.ops) if options.ops else ()
    return Request(
        name=scenario.name, scenario=as_data(scenario), warm_ups=options.steps,
        target=(*module, str(options.scenario), *ops), ncu=options.ncu,
        timeout_s=options.timeout_s, logs=options.logs,
    )  # fmt: skip


def working_sets(text: str) -> dict[str, int]:
    """`32MB,48MiB` as bytes by op name. Raises SpecError for a size the read kernel cannot take."""
    sizes: dict[str, int] = {}
    for each in _listed(text):
        size = parse_whole("working_set_bytes", each)
        if size <= 0 or size % 16:
            raise SpecError(
                "--working-set", each, "is not a positive multiple of 16 bytes", "use 32MB"
            )
        sizes[f"read.{each}"] = size
    return sizes


def _count_all(options: argparse.Namespace) -> int:
    """Every committed scenario, then the working sets, each into a file; goes on after a failure."""
    if options.out_dir is None:
        raise SpecError("--out-dir", None, "is missing", "add --out-dir DIR")
    find_ncu(options.ncu)
    files = sorted(options.folder.glob("*.toml"))
    if not files:
        raise SpecError("--folder", str(options.folder), "holds no scenario", "name another folder")
    todo = [(path, "") for path in files] + [(None, size) for size in ALL_WORKING_SETS]
    num_failed = 0
    for scenario, size in todo:
        chosen = {
            "scenario": scenario, "working_set": size, "ops": "",
            "logs": options.logs or options.out_dir / "logs",
        }  # fmt: skip
        one = argparse.Namespace(**vars(options) | chosen)
        name = scenario.stem if scenario else f"reads-{size}"
        try:
            _write(count(_request(one)), options.out_dir / f"{name}.json")
        except LayerwiseError as error:
            num_failed += 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(f"{len(todo) - num_failed} of {len(todo)} written to {options.out_dir}", flush=True)
    return 1 if num_failed else 0


def _write(counters: Counters, path: Path) -> None:
    data = {"format": FORMAT, "version": VERSION} | asdict(counters)
    write_atomically(path, json.dumps(data, indent=1) + "\n")
    num_kernels = sum(len(op.kernels) for op in counters.ops)
    print(
        f"{path}: {len(counters.ops)} ops, {num_kernels} kernels, passes {counters.passes}"
        + "".join(f"; {note}" for note in counters.notes),
        flush=True,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} warms nothing up; use 1 or more")
    return value


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _load(path: Path) -> Scenario:
    try:
        from layerwise.sim.plan.files import load_scenario
    except ImportError as error:
        raise MissingPackageError(
            error.name or "pydantic", "read scenario files", "pip install pydantic",
            "`layerwise.hw.counters.run_scenario` with a Scenario made in Python",
        ) from error  # fmt: skip
    return load_scenario(path)


if __name__ == "__main__":
    sys.exit(main())
