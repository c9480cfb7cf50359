"""A program that is called as ncu is, and writes a log as ncu does: no GPU, no counters.

What it says is laid out as Nsight Compute 2025.3 lays it out: progress lines, whatever the target
printed, then the CSV of `--page raw` with a row of units and NVTX ranges in columns of their own.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
FIXED = ("ID", "Process ID", "Process Name", "Host Name", RANGES, "Kernel Name", "Context")
UNITS = {"lts": "sector", "dram": "byte", "gpu": "ns"}

# (op, kernel, metric name -> cell); no op: outside all ranges.
KernelRow = tuple[str, str, dict[str, str]]


def range_cell(op: str, *outer: str) -> str:
    """Open ranges of one thread, outer ones first, each in quotes of its own."""
    tail = "none:none:ARGB:4278190335:registered"
    names = [*outer, *([f"layerwise:{op}:{tail}:{op}"] if op else [])]
    return f"4242 {''.join(quoted)}" if (quoted := [f' "{name}" ' for name in names]) else ""


def table(
    kernels: Sequence[KernelRow],
    metrics: Sequence[str],
    units: dict[str, str] | None = None,
    columns: Sequence[str] = (),
) -> str:
    """The CSV of `--page raw`; `columns` gives another order."""
    order = list(columns) or [*FIXED, *metrics]
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(order)
    known = {m: (units or {}).get(m, UNITS[m.partition("__")[0]]) for m in metrics}
    writer.writerow([known.get(column, "") for column in order])
    for index, (op, kernel, values) in enumerate(kernels):
        fixed = {
            "ID": str(index),
            "Process ID": "4242",
            "Process Name": "python3.12",
            "Host Name": "127.0.0.1",
            RANGES: range_cell(op),
            "Kernel Name": kernel,
            "Context": "1",
        }
        writer.writerow([(fixed | values).get(column, "") for column in order])
    return out.getvalue()


def log(csv_text: str, passes: int = 1) -> str:
    """The log file of a run with application replay."""
    ran = [
        f'==PROF== Profiling "nvjet_hsh_64x8" - 0: Application replay pass {each}'
        for each in range(1, passes + 1)
    ]
    begun = "==PROF== Connected to process 4242 (/usr/bin/python3.12)"
    return "\n".join([begun, *ran, "==PROF== Disconnected from process 4242", csv_text])


def install(folder: Path, plan: dict[str, object]) -> Path:
    """Put an executable `ncu` into a folder. `plan` says what it does; see `_main`."""
    (folder / "plan.json").write_text(json.dumps(plan))
    program = folder / "ncu"
    root = Path(__file__).parents[2]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        f"from tests.hw.fake_ncu import _main\nsys.exit(_main({str(folder)!r}))\n"
    )
    program.chmod(0o755)
    return program


def _main(folder: str) -> int:
    """`kernels`: rows; `report`: what the target would write; `say`, `by_metric`: errors; `code`."""
    arguments, place = sys.argv[1:], Path(folder)
    if arguments == ["--version"]:
        sys.stdout.write("NVIDIA (R) Nsight Compute Command Line Profiler\nVersion 2025.3.1.0\n")
        return 0
    with (place / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    plan = json.loads((place / "plan.json").read_text())
    metrics = arguments[arguments.index("--metrics") + 1].split(",")
    out = Path(arguments[arguments.index("--log-file") + 1])
    say = next((text for name, text in plan.get("by_metric", {}).items() if name in metrics), "")
    say = say or plan.get("say", "")
    time.sleep(plan.get("sleep_s", 0))
    if say:
        out.write_text(f"==PROF== Connected to process 4242\n==ERROR== {say}\n")
        sys.stdout.write(plan.get("target_said", "") + "\n")
        return int(plan.get("code", 1))
    kernels = [
        (op, name, {m: values.get(m, "0") for m in metrics}) for op, name, values in plan["kernels"]
    ]
    if plan.get("other_kernels_for") in metrics:
        kernels = kernels[:-1]
    out.write_text(log(table(kernels, metrics), passes=plan.get("passes", 1)))
    target = json.loads(arguments[-1])
    Path(target["report"]).write_text(json.dumps(plan["report"]))
    return 0
