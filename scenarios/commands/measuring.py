"""Commands that run a scenario, or hold a run against its prediction.

doctor, measure, recover, compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerwise.hw.options import Options, help_of
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

if TYPE_CHECKING:
    from layerwise.sim.profile import Profile


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

        print_json("doctor", machine_as_data(machine))
        return
    from layerwise.scenarios.measure.doctoring import print_machine
    from layerwise.scenarios.tables import console

    print_machine(machine, console())


def _option(name: str, **more: Any) -> Any:
    """Describe an option of a measurement as `python -m layerwise.hw` does."""
    return typer.Option(help=help_of(name), **more)


def _seconds_option(name: str) -> Any:
    return _option(name, parser=parse_seconds, metavar="TIME")


def measure(
    scenario: ScenarioArgument,
    out: Annotated[Path, typer.Option(metavar="TRACE", help="The trace to write (.jsonl[.gz]).")],
    device: Annotated[DeviceName, _option("device")] = DeviceName.CUDA,
    timing: Annotated[TimingName | None, _option("timing")] = None,
    traced_repeats: Annotated[int, _option("traced_repeats", metavar="N")] = Options.traced_repeats,
    bandwidth: Annotated[bool, _option("bandwidth")] = Options.bandwidth,
    purpose: Annotated[Purpose, _option("purpose")] = Purpose.OTHER,
    power: Annotated[bool, _option("power")] = Options.power,
    energy_s: Annotated[float, _seconds_option("energy_s")] = Options.energy_s,
    timeout_s: Annotated[float, _seconds_option("timeout_s")] = Options.timeout_s,
    stall_s: Annotated[float, _seconds_option("stall_s")] = Options.stall_s,
    imported: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Run nothing: take nsys's .sqlite or torch.profiler's .json (repeatable).",
        ),
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
) -> None:
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
    options = Options(
        out=out,
        device=device.value,
        timing=timing.value if timing else None,
        traced_repeats=traced_repeats,
        bandwidth=bandwidth,
        purpose=purpose.value,
        power=power,
        energy_s=energy_s,
        timeout_s=timeout_s,
        stall_s=stall_s,
        announce=True,
    )
    files = ImportedFiles(tuple(imported or ()), tuple(rank_of or ()), untraced)
    if files.are_asked_for:
        said = import_to(asked, out, files, options)
    else:
        said = measure_to(asked, options)
    if as_json and said.startswith(f"{out}: "):  # no rank but the first writes one
        from layerwise.scenarios.commands.written import trace_as_data

        print_json("measure", trace_as_data(out, said))
    else:
        note(said)


def recover(
    partial: Annotated[Path, typer.Argument(metavar="TRACE.partial")],
    as_json: JsonOption = False,
) -> None:
    """Make a trace of what the ranks of a run that nobody could save had measured.

    Example: layerwise recover trace.jsonl.partial
    """
    from layerwise.hw.ranks.journal import salvage, told

    saved = salvage(partial)
    said = told(*saved) if saved else f"{partial}: nothing was measured"
    if not as_json:
        note(said)
    elif saved:
        from layerwise.scenarios.commands.written import trace_as_data

        print_json("recover", trace_as_data(saved[0], said))
    else:
        print_json("recover", {"trace": None, "said": [said]})


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
    counters: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What `layerwise counters` wrote (repeatable)."),
    ] = None,
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

    With --counters: predicted bytes beside those that ncu counted, never a gate.

    Example: layerwise compare --all
    """
    profiles = lru_cache(lambda gpu: needed_profile(profile, gpu))
    if counters:
        others = {
            "SCENARIO.toml": scenario,
            "--measured": measured,
            "--all": everything,
            "--level": level,
            "--csv": csv,
            "--plot": plot,
            "--trace": trace,
        }
        _compare_counters(counters, profiles, [key for key in others if others[key]], as_json)
        return
    from layerwise.scenarios.compare.choosing import choose_traces, compare_all, comparisons_as_data
    from layerwise.scenarios.compare.files import write_csv, write_plot
    from layerwise.scenarios.compare.joined import passes

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
        print_json("compare", comparisons_as_data(compared))
    else:
        from layerwise.scenarios.compare.tables import print_comparisons
        from layerwise.scenarios.tables import console

        print_comparisons(compared, console(), level=level.value if level else None)
    if not passes(each.comparison for each in compared):
        raise typer.Exit(1)


def _compare_counters(
    files: Sequence[Path], profiles: Callable[[str], Profile], unused: Sequence[str], as_json: bool
) -> None:
    from layerwise.scenarios.accuracy.counters import (
        compare_files,
        compared_as_data,
        print_compared,
    )
    from layerwise.scenarios.tables import console
    from layerwise.sim.plan.errors import SpecError

    if unused:
        raise SpecError("--counters", str(files[0]), f"does not go with {unused}", "leave them out")
    compared = compare_files(files, profiles)
    if as_json:
        print_json("compare-counters", {"counters": [compared_as_data(one) for one in compared]})
        return
    out = console()
    for one in compared:
        print_compared(one, out)
