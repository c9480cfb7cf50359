"""Commands that try a machine's parts: links, overlap, counters, figures, and a whole host."""

from __future__ import annotations

import shlex
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from layerwise.scenarios.commands.options import (
    DeviceName,
    JsonOption,
    LevelName,
    parse_seconds,
)
from layerwise.scenarios.commands.shared import note, print_json

# One eager rank each, which `layerwise counters --all` takes beside these working sets.
COMMITTED_COUNTERS = Path(__file__).resolve().parents[1] / "counters"
WORKING_SETS = ("32MB", "48MB")


class AttentionName(StrEnum):
    """Which kernel computes attention."""

    MATH = "math"
    FLASH = "flash"
    CUDNN = "cudnn"
    SPLIT_KV = "split_kv"


OutFile = Annotated[Path, typer.Option(metavar="FILE", help="The file to write (.json).")]


def links(
    out: OutFile,
    device: Annotated[DeviceName, typer.Option(help="GPUs, or the CPU.")] = DeviceName.CUDA,
    ranks: Annotated[
        int, typer.Option(metavar="N", help="Ranks to start; every GPU, or 2 on the CPU.")
    ] = 0,
    sizes: Annotated[
        str, typer.Option(metavar="LOW..HIGH", help="By powers of two, as 512..512MiB.")
    ] = "",
    modes: Annotated[
        str, typer.Option(metavar="MODE,...", help="graph,eager; on the CPU eager.")
    ] = "",
    ops: Annotated[
        str, typer.Option(metavar="OP,...", help="Such as send,all_reduce; all by default.")
    ] = "",
    budget_s: Annotated[
        float,
        typer.Option(parser=parse_seconds, metavar="TIME", help="After it, no series is begun."),
    ] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Time messages and collectives between GPUs, by payload. Needs torch.

    Also as one of torchrun's ranks: torchrun --nproc-per-node 8 --no-python layerwise links ...

    Example: layerwise links --out links.json
    """
    from layerwise.scenarios.measure.measuring import require_torch

    require_torch("time links")
    from layerwise.hw.links.measuring import time_links
    from layerwise.hw.links.series import request_of

    asked = request_of(out, device.value, sizes=sizes, modes=modes, ops=ops, budget_s=budget_s)
    _say_timings(out, time_links(asked, ranks), as_json=as_json)


def overlap(
    out: OutFile,
    timeout_s: Annotated[
        float, typer.Option(parser=parse_seconds, metavar="TIME", help="End it after so long.")
    ] = 180.0,
    as_json: JsonOption = False,
) -> None:
    """Time what messages and kernels cost each other, on two GPUs. Needs torch.

    Also as one of torchrun's two ranks, as `layerwise links`.

    Example: layerwise overlap --out overlap.json
    """
    from layerwise.scenarios.measure.measuring import require_torch

    require_torch("time messages beside kernels")
    from layerwise.hw.links.overlap import time_overlap

    _say_timings(out, time_overlap(out, timeout_s), as_json=as_json)


def _say_timings(out: Path, num_timings: int | None, *, as_json: bool) -> None:
    """Say what the first rank has written; the others of torchrun say nothing."""
    if num_timings is None:
        return
    if as_json:
        print_json("timings", {"timings": str(out), "num_timings": num_timings})
    else:
        note(f"{out}: {num_timings} timings")


def counters(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="[SCENARIO.toml]", help="Of one rank, eager.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The counters to write (.json).")
    ] = None,
    ops: Annotated[str, typer.Option(metavar="OP,...", help="Profile these ops alone.")] = "",
    steps: Annotated[
        int, typer.Option(metavar="N", help="Steps, or passes, before the profiled one.")
    ] = 5,
    working_set: Annotated[
        str, typer.Option(metavar="SIZE,...", help="Reads over such buffers instead: 32MB,48MB.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every scenario of --folder, and two working sets.")
    ] = False,
    out_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where --all writes NAME.json.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The scenarios of --all; the project's own.")
    ] = None,
    ncu: Annotated[str, typer.Option(metavar="PROGRAM", help="Nsight Compute's program.")] = "ncu",
    timeout_s: Annotated[
        float, typer.Option(parser=parse_seconds, metavar="TIME", help="End a run of ncu then.")
    ] = 120.0,
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep ncu's own logs (--all: OUT_DIR/logs).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count what each op reads from L2 and HBM, by Nsight Compute; 1 when some of --all failed.

    Example: layerwise counters scenario.toml --out counters.json
    """
    from layerwise.scenarios.measure.measuring import require_torch

    require_torch("run what is counted")
    from layerwise.hw.counters.counting import Request, count_each, count_to
    from layerwise.sim.plan.errors import SpecError

    request = partial(Request, steps=steps, ncu=ncu, timeout_s=timeout_s)
    if not everything:
        if out is None:
            raise SpecError("--out", None, "is missing", "add --out counters.json")
        asked = request(scenario=scenario, working_set=working_set, ops=ops, logs=logs)
        written = count_to(asked, out, note)
        if as_json:
            print_json("counters", written)
        return
    if out_dir is None:
        raise SpecError("--out-dir", None, "is missing", "add --out-dir DIR")
    source = folder or COMMITTED_COUNTERS
    files = sorted(source.glob("*.toml"))
    if not files:
        raise SpecError("--folder", str(source), "holds no scenario", "name another folder")
    kept = logs or out_dir / "logs"
    asked_of_all = [request(scenario=file, logs=kept) for file in files]
    asked_of_all += [request(working_set=size, logs=kept) for size in WORKING_SETS]
    outcomes = count_each(asked_of_all, out_dir, note)
    if as_json:
        print_json("counters", {"files": outcomes})
    if any("problem" in outcome for outcome in outcomes):
        raise typer.Exit(1)


def figures(
    context: typer.Context,
    out: OutFile,
    only: Annotated[str, typer.Option(metavar="NAME,...", help="Figures to take.")] = "",
    device: Annotated[str, typer.Option(metavar="GPU", help="Which GPU: cuda:0.")] = "cuda",
    two_gpus: Annotated[
        bool, typer.Option("--two-gpus", help="Only what needs two; starts its own ranks.")
    ] = False,
    decode_attention: Annotated[
        AttentionName, typer.Option(help="The kernel of decode.")
    ] = AttentionName.CUDNN,
    prefill_attention: Annotated[
        AttentionName, typer.Option(help="The kernel of prefill.")
    ] = AttentionName.CUDNN,
    as_json: JsonOption = False,
) -> None:
    """What the engine reaches on this GPU beside its bars; exit code 1 when one is missed.

    Example: layerwise figures --out figures.json --only stage-8,hidden-1024
    """
    from layerwise.scenarios.measure.measuring import require_torch

    require_torch("take figures")
    from layerwise.hw.figures.report import table
    from layerwise.hw.figures.run import Request, take_figures

    asked = Request(
        out=out,
        only=[name for name in only.split(",") if name],
        device=device,
        two_gpus=two_gpus,
        decode_attention=decode_attention.value,
        prefill_attention=prefill_attention.value,
        command=shlex.join(["layerwise", *(context.obj or ())]),
    )
    outcomes = take_figures(asked)
    if as_json:
        from layerwise.sim.plan.reading import read_json

        print_json("figures", read_json(out))
    else:
        print("\n".join(table(outcomes)))
        note(f"{out}: {len(outcomes)} figures")
    if not all(outcome.passes for outcome in outcomes):
        raise typer.Exit(1)


def host(
    gpus: Annotated[
        int, typer.Option(metavar="N", help="2, 4 or 8: all of the host's; DIR's by default.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write, or to go on with.")
    ] = None,
    gpu: Annotated[
        str, typer.Option(metavar="GPU", help="Whose profile predicts; DIR's, or what is here.")
    ] = "",
    device: Annotated[
        DeviceName | None, typer.Option(help="cpu: every stage, tiny; DIR's, or cuda.")
    ] = None,
    budget_s: Annotated[
        float, typer.Option(parser=parse_seconds, metavar="TIME", help="Of this call.")
    ] = 540.0,
    prediction: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take it; the committed one by default.")
    ] = None,
    predict_only: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write predictions to commit, no more.")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Measure nothing, report on DIR.")
    ] = False,
    level: Annotated[
        LevelName | None, typer.Option(help="Also every trace as `compare` shows it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict, check, time and measure a whole host, and compare. Needs torch.

    Run again with the same DIR it goes on; exit code 1 where runs are left to measure.

    Example: layerwise host --gpus 2 --device cpu --out rehearsal
    """
    from layerwise.scenarios.measure.measuring import require_torch
    from layerwise.sim.plan.errors import SpecError

    if not (out or predict_only):
        raise SpecError("--out", None, "is missing", "give --out DIR, or --predict-only FILE")
    require_torch("measure a host")
    from layerwise.scenarios.whole_host.command import compared, predict_to, request_of
    from layerwise.scenarios.whole_host.driving import run_host
    from layerwise.scenarios.whole_host.reporting import write_report
    from layerwise.scenarios.whole_host.settling import settle

    settled = settle(
        out,
        device.value if device else None,
        gpu,
        gpus,
        measures=not (report_only or predict_only),
    )
    if settled.said:
        note(settled.said)
    request = request_of(settled, out or Path(), budget_s, prediction)
    if predict_only:
        made = predict_to(request, predict_only)
        said = f"{predict_only}: {made['num_runs']} runs predicted with profile {made['profile']}"
        print_json("host", made) if as_json else note(said)
        return
    num_left = 0 if report_only else run_host(request, note)
    text = write_report(request)
    tables = compared(request, level.value) if level else ""
    if as_json:
        from layerwise.sim.plan.reading import read_json

        print_json("host", read_json(request.out / "report.json"))
    else:
        print("\n".join(filter(None, (text, tables))))
    if num_left:
        raise typer.Exit(1)
