"""Commands that run on a machine, or hold a run against its prediction: doctor, measure, compare."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from layerwise.scenarios.commands.options import (
    MAX_SLICES,
    DeviceName,
    JsonOption,
    LevelName,
    OptionalScenario,
    ProfileOption,
    Purpose,
    ScenarioArgument,
    SetOption,
    SlicesOption,
    TimelineOption,
    TimingName,
    parse_seconds,
    shipped,
)
from layerwise.scenarios.commands.shared import (
    needed_profile,
    note,
    note_changes,
    print_json,
    profile_or_none,
)


def doctor(
    as_json: JsonOption = False,
    device: Annotated[
        DeviceName, typer.Option(help="GPUs too, or the CPU only.")
    ] = DeviceName.CUDA,
    quick: Annotated[bool, typer.Option("--quick", help="Look only: measure no rates.")] = False,
) -> None:
    """What this machine has for measuring, and what each missing piece costs.

    Example: layerwise doctor --quick
    """
    from layerwise.hw.host.doctor import examine, probes_here

    machine = examine(probes_here(), device.value, quick=quick)
    if as_json:
        from layerwise.scenarios.measure.doctoring import machine_as_data

        print_json(machine_as_data(machine))
        return
    from layerwise.scenarios.measure.doctoring import print_machine
    from layerwise.scenarios.tables import console

    print_machine(machine, console())


def measure(
    scenario: ScenarioArgument,
    out: Annotated[Path, typer.Option(metavar="TRACE", help="The trace to write (.jsonl[.gz]).")],
    device: Annotated[DeviceName, typer.Option(help="GPUs, or the CPU.")] = DeviceName.CUDA,
    timing: Annotated[
        TimingName | None, typer.Option(help="Who times each op; the device's own by default.")
    ] = None,
    bandwidth: Annotated[bool, typer.Option(help="Measure HBM's read rate as well.")] = False,
    purpose: Annotated[
        Purpose, typer.Option(help="What the trace may be used for; a fit never validates.")
    ] = Purpose.OTHER,
    power: Annotated[
        bool, typer.Option("--power/--no-power", help="Sample power and clocks beside.")
    ] = True,
    energy_s: Annotated[
        float,
        typer.Option(parser=parse_seconds, metavar="TIME",
                     help="Repeat so long afterwards, for energy alone (0.5 s or more)."),
    ] = 0.0,
    imported: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE",
                     help="Run nothing: take nsys's .sqlite or torch.profiler's .json (repeatable)."),
    ] = None,
    rank_of: Annotated[
        list[str] | None,
        typer.Option(metavar="PID=RANK", help="Which rank an imported process is (repeatable)."),
    ] = None,
    untraced: Annotated[
        Path | None, typer.Option(metavar="TRACE", help="Step times for an import: the same work.")
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run a scenario for real, on GPUs or on the CPU, and write its trace. Needs torch.

    Example: layerwise measure scenario.toml --out trace.jsonl.gz
    """
    from layerwise.scenarios.measure.measuring import (
        ImportedFiles,
        best_microbatches,
        import_to,
        measure_to,
        require_torch,
    )
    from layerwise.sim.plan.files import load_scenario
    from layerwise.sim.plan.overrides import parse_settings

    asked = load_scenario(scenario, parse_settings(changes or ()))
    note_changes(changes)
    constants = profile_or_none(None, asked.cluster.gpu.name)
    if constants and device is DeviceName.CUDA:
        asked = asked.with_kernels(constants.kernels)
    if not asked.workload.num_microbatches:
        require_torch()
        asked = asked.with_microbatches(best_microbatches(asked, constants))
        note(f"workload.num_microbatches: {asked.workload.num_microbatches}, the best predicted")
    files = ImportedFiles(tuple(imported or ()), tuple(rank_of or ()), untraced)
    if files.are_asked_for:
        own = {"--timing": timing, "--bandwidth": bandwidth, "--energy-s": energy_s}
        said = import_to(asked, out, files, purpose.value, [key for key in own if own[key]])
    else:
        said = measure_to(
            asked, out, device.value, timing.value if timing else None, bandwidth, purpose.value,
            sample_power=power, energy_s=energy_s,
        )  # fmt: skip
    if as_json and said.startswith(f"{out}: "):  # no rank but the first writes one
        from layerwise.scenarios.commands.written import trace_as_data

        print_json(trace_as_data(out, said))
    else:
        note(said)


def compare(
    scenario: OptionalScenario = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE",
            callback=shipped("--measured", "trace"),
            help="A measured trace: a file, or a shipped name.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every committed validation trace.")
    ] = False,
    level: Annotated[
        LevelName | None,
        typer.Option(help="What a line is; of one trace the finest that fits a screen by default."),
    ] = None,
    as_json: JsonOption = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all levels as CSV, in SI units.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the ops (.png, .svg); matplotlib.")
    ] = None,
    trace: TimelineOption = None,
    trace_slices: SlicesOption = MAX_SLICES,
    profile: ProfileOption = None,
) -> None:
    """Predicted beside measured, op by op; exit code 1 when a stage is off by more than 6 %.

    Example: layerwise compare --all
    """
    from layerwise.scenarios.compare.choosing import choose_traces, compare_all, comparisons_as_data
    from layerwise.scenarios.compare.files import write_csv, write_plot
    from layerwise.scenarios.compare.joined import passes

    profiles = lru_cache(lambda gpu: needed_profile(profile, gpu))
    chosen = choose_traces(scenario, measured, everything, profiles)
    compared = compare_all(chosen, profiles)
    if plot is not None:
        note(write_plot(compared, plot))
    if csv is not None:
        note(write_csv(compared, csv))
    if trace is not None:
        from layerwise.scenarios.predict.timeline import write_compared_timeline

        runs = [(each.comparison.trace, each.profile) for each in compared]
        note(write_compared_timeline(runs, trace, trace_slices))
    if as_json:
        print_json(comparisons_as_data(compared))
    else:
        from layerwise.scenarios.compare.tables import print_comparisons
        from layerwise.scenarios.tables import console

        print_comparisons(compared, console(), level=level.value if level else None)
    if not passes(each.comparison for each in compared):
        raise typer.Exit(1)
