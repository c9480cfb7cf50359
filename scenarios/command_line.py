"""The command line `layerwise`. Everything heavy is imported by the command that needs it.

Exit codes: 0 an answer (a placement that does not fit is one), 1 a gate failed, 2 bad input.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sim.profile import Profile

app = typer.Typer(
    name="layerwise", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Where to place a model: predicted by simulation, measured on GPUs, side by side.",
    epilog="Exit codes: 0 an answer (also: it does not fit), 1 a gate failed, 2 bad input. "
    "Quantities are in SI units, or as people write them: 20ms, 450GB/s, 11GiB. "
    "Begin with: layerwise paper",
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"layerwise {version('layerwise')}")
        except PackageNotFoundError:
            print("layerwise, not installed")
        raise typer.Exit


@app.callback()
def layerwise(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True,
                           help="Print the version and exit.")
    ] = False,
) -> None:  # fmt: skip
    """Options of the command itself."""


def _parse_seconds(written: str | float) -> float:
    """`20ms`, `10min`, or plain seconds. Raises SpecError."""
    from sim.plan.units import parse_real

    return parse_real("time_s", str(written))


class ModelName(StrEnum):
    """The paper's model as its dimensions give it, and as its parameter count needs it."""

    PAPER_16 = "paper-16"
    PAPER_30B = "paper-30b"


class PhaseName(StrEnum):
    """What the sequences are doing."""

    DECODE = "decode"
    PREFILL = "prefill"


class LaunchName(StrEnum):
    """How kernels are launched."""

    GRAPH = "graph"
    EAGER = "eager"


class Purpose(StrEnum):
    """What a trace may be used for."""

    FIT = "fit"
    VALIDATION = "validation"
    OTHER = "other"


class DeviceName(StrEnum):
    """What measures."""

    CUDA = "cuda"
    CPU = "cpu"


class LevelName(StrEnum):
    """What a line of a comparison is."""

    OP = "op"
    LAYER = "layer"
    STAGE = "stage"
    RUN = "run"


class TimingName(StrEnum):
    """Who times each op of a measurement."""

    CUPTI = "cupti"
    EVENTS = "events"
    CLOCK = "clock"
    NONE = "none"


ProfileOption = Annotated[
    Path | None, typer.Option("--profile", metavar="FILE", help="Calibration profile.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON, in SI units, for machines.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one field (repeatable): workload.batch_size=64."
    ),
]
ScenarioArgument = Annotated[Path, typer.Argument(metavar="SCENARIO.toml")]


@app.command(short_help="The paper's claims beside predictions and measurements.")
def paper(
    model: Annotated[ModelName, typer.Option(help="16 layers, or the 112 of 30 B.")]
    = ModelName.PAPER_16,
    phase: Annotated[PhaseName, typer.Option(help="Decode, or prefill.")] = PhaseName.DECODE,
    launch: Annotated[LaunchName, typer.Option(help="CUDA graph, or eager.")] = LaunchName.GRAPH,
    as_json: JsonOption = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a timeline for Perfetto.")
    ] = None,
    changes: SetOption = None,
    profile: ProfileOption = None,
) -> None:  # fmt: skip
    """The paper's claims beside predictions and measurements, with a verdict for each.

    Example: layerwise paper --phase prefill
    """
    from scenarios.paper import Question, ask, default_traces
    from sim.plan.overrides import parse_settings

    question = Question(
        model=model.value, phase=phase.value, launch=launch.value,
        changes=parse_settings(changes or ()),
    )  # fmt: skip
    gpu = question.scenario("layer-wise").cluster.gpu.name
    report = ask(question, _profile(profile, gpu), default_traces())
    _note_changes(changes)
    if trace is not None:
        from scenarios.timeline import write_paper_timeline

        _note(write_paper_timeline(report, trace))
    if as_json:
        from scenarios.paper_json import report_as_data

        _print_json(report_as_data(report))
        return
    from scenarios.paper_tables import print_report
    from scenarios.tables import console

    print_report(report, console())


@app.command(short_help="Predict a scenario: rates, times, memory, bottlenecks.")
def predict(
    scenario: ScenarioArgument,
    as_json: JsonOption = False,
    changes: SetOption = None,
    profile: ProfileOption = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="Also N decode steps with a growing context.")
    ] = 0,
    commit_to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a prediction ahead of a run.")
    ] = None,
) -> None:
    """Predict a scenario: rates, times, memory, bottlenecks.

    Example: layerwise predict scenario.toml --set cluster.gpu.hbm_bytes_per_s=6.7TB/s
    """
    from scenarios.generated import generate_all, generation_as_data, print_generated
    from scenarios.predicted import commit_prediction, predict_all, predicted_as_data
    from sim.cost.transfer import profile_for
    from sim.plan.files import load_scenario
    from sim.plan.overrides import parse_settings, with_values

    asked = load_scenario(scenario)
    if changes:
        asked = with_values(asked, parse_settings(changes))
    constants = _profile(profile, asked.cluster.gpu.name)
    if constants:
        constants = profile_for(asked.cluster, constants)
    if commit_to is not None:
        _note(commit_prediction(asked, constants, commit_to))
        return
    beliefs = predict_all(asked, constants)
    generated = generate_all(asked, beliefs, constants, tokens) if tokens else {}
    _note_changes(changes)
    if as_json:
        runs = {belief: generation_as_data(run) for belief, run in generated.items()}
        data = predicted_as_data(asked, beliefs, constants)
        _print_json(data | ({"generation": runs} if runs else {}))
        return
    from scenarios.predicted_tables import BELIEF_NAMES, print_predicted
    from scenarios.tables import console

    print_predicted(asked, beliefs, constants, out := console())
    if generated:
        print_generated(generated, BELIEF_NAMES, out)


@app.command(short_help="Run a scenario for real and write its trace.")
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
        typer.Option(parser=_parse_seconds, metavar="TIME",
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
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run a scenario for real, on GPUs or on the CPU, and write its trace. Needs torch.

    Example: layerwise measure scenario.toml --out trace.jsonl.gz
    """
    from scenarios.measuring import (
        ImportedFiles,
        best_microbatches,
        import_to,
        measure_to,
        require_torch,
    )
    from sim.plan.files import load_scenario

    asked = load_scenario(scenario)
    constants = _profile(None, asked.cluster.gpu.name)
    if constants and device is DeviceName.CUDA:
        asked = asked.with_kernels(constants.kernels)
    if not asked.workload.num_microbatches:
        require_torch()
        asked = asked.with_microbatches(best_microbatches(asked, constants))
        _note(f"workload.num_microbatches: {asked.workload.num_microbatches}, the best predicted")
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
        from scenarios.written_json import trace_as_data

        _print_json(trace_as_data(out, said))
    else:
        _note(said)


@app.command(short_help="Predicted beside measured, op by op; a gate.")
def compare(
    scenario: Annotated[Path | None, typer.Argument(metavar="[SCENARIO.toml]")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="TRACE", help="A measured trace.")
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
    profile: ProfileOption = None,
) -> None:
    """Predicted beside measured, op by op; exit code 1 when a stage is off by more than 6 %.

    Example: layerwise compare --all
    """
    from scenarios.compare import passes
    from scenarios.compare_files import write_csv, write_plot
    from scenarios.comparing import choose_traces, compare_all, comparisons_as_data

    profiles = lru_cache(lambda gpu: _needed_profile(profile, gpu))
    chosen = choose_traces(scenario, measured, everything, profiles)
    compared = compare_all(chosen, profiles)
    if plot is not None:
        _note(write_plot(compared, plot))
    if csv is not None:
        _note(write_csv(compared, csv))
    if as_json:
        _print_json(comparisons_as_data(compared))
    else:
        from scenarios.compare_tables import print_comparisons
        from scenarios.tables import console

        print_comparisons(compared, console(), level=level.value if level else None)
    if not passes(each.comparison for each in compared):
        raise typer.Exit(1)


@app.command(short_help="What no fit has seen, predicted again; a gate.")
def accuracy(
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measurements; the committed ones by default."),
    ] = None,
    commit_to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write predictions ahead of a run.")
    ] = None,
    as_json: JsonOption = False,
    gpu: Annotated[str, typer.Option(help="The GPU that was measured.")] = "h100-sxm",
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Hold each point to its tolerance there, not to bars."),
    ] = None,
    update_ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the ledger again; show old and new.")
    ] = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why it may ask for less; written into it.")
    ] = "",
    profile: ProfileOption = None,
) -> None:
    """What no fit has seen, predicted again; exit code 1 below the bars, or outside the ledger.

    Example: layerwise accuracy --gpu h200 --json
    """
    constants = _needed_profile(profile, gpu)
    if commit_to is not None:
        from calibration.selection import SCORED_SIZES_BYTES
        from scenarios.accuracy_predictions import commit_unseen

        _note(commit_unseen(constants, commit_to, SCORED_SIZES_BYTES))
        return
    from scenarios.accuracy import score_unseen
    from scenarios.accuracy_bars import passes
    from scenarios.accuracy_tables import accuracy_as_data, print_accuracy
    from scenarios.tables import console

    if ledger is not None:  # a broken one is told before minutes of scoring
        from scenarios.ledger import read_ledger

        held_to = read_ledger(ledger)
    else:
        held_to = None
    scored = score_unseen(constants, folder)
    if update_ledger is not None:
        from scenarios.ledger_update import update_and_print

        _note(update_and_print(update_ledger, scored, constants, reason, console()))
        return
    if held_to is not None:
        from scenarios.ledger import check, problems_as_data
        from scenarios.ledger_tables import print_gate

        problems = check(held_to, scored)
        if as_json:
            _print_json(problems_as_data(held_to, problems))
        else:
            print_gate(held_to, scored, problems, console())
        passed = not problems
    elif as_json:
        _print_json(accuracy_as_data(scored, constants))
        passed = passes(scored)
    else:
        print_accuracy(scored, constants, console())
        passed = passes(scored)
    if not passed:
        raise typer.Exit(1)


@app.command(short_help="Measure this machine's GPU, fit, score, write a profile.")
def calibrate(
    collect: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only measure this machine's GPU, here.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only fit the measurements in a folder.")
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option(metavar="PROFILE", help="Move a profile to this machine.")
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option("--for", metavar="SCENARIO.toml", help="Measure the shapes it needs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PROFILE", help="The profile to write (.json).")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK,...", help="What to collect; all that a fit needs by default."),
    ] = None,
    budget_s: Annotated[
        float,
        typer.Option(parser=_parse_seconds, metavar="TIME",
                     help="Time to measure; 10min, to anchor 5min, for a scenario 2min."),
    ] = 0.0,
    gpu: Annotated[str, typer.Option(help="The GPU; found out where it is measured.")] = "",
    name: Annotated[str, typer.Option(help="The profile's name; the GPU's by default.")] = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure this machine's GPU, fit, score on points kept apart, write a profile and its faults.

    With --collect or --fit one half of that; --anchor moves a shipped profile here in minutes;
    --for measures what one scenario needs. What was measured is kept: run it again to go on.

    Example: layerwise calibrate --out profile.json --budget-s 600
    """
    from scenarios.calibrating import Asked
    from scenarios.calibrating import calibrate as run
    from scenarios.tables import console

    asked = Asked(
        collect=collect, fit=fit, anchor=anchor, scenario=scenario, out=out, what=tuple(what or ()),
        budget_s=budget_s, gpu=gpu, name=name, profile=profile,
    )  # fmt: skip
    said = run(asked, console(stderr=as_json), _note)
    if as_json:
        from scenarios.written_json import calibrated_as_data

        _print_json(calibrated_as_data(out, said))
    else:
        _note(said)


@app.command(short_help="Every placement of a model, best first, and what flips it.")
def rank(
    model: Annotated[str, typer.Option(metavar="MODEL", help="paper-16, paper-30b, or a config.json.")],
    gpus: Annotated[int, typer.Option(metavar="N", help="How many GPUs; all are used.")] = 16,
    gpu: Annotated[str, typer.Option(metavar="GPU", help="A known GPU, or a .toml.")] = "h100-sxm",
    gpus_per_node: Annotated[
        int, typer.Option(metavar="N", help="0: the most up to 8 that fill all nodes.")
    ] = 0,
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences in flight.")] = 128,
    context: Annotated[int, typer.Option(metavar="N", help="Tokens each of them holds.")] = 10_000,
    tpot_below: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest time between tokens: 20ms.")
    ] = None,
    fits_only: Annotated[bool, typer.Option("--fits-only", help="Only what fits.")] = False,
    launch: Annotated[LaunchName, typer.Option(help="CUDA graph, or eager.")] = LaunchName.GRAPH,
    everything: Annotated[bool, typer.Option("--all", help="Print every row.")] = False,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the Pareto front (.png, .svg, .pdf).")
    ] = None,
    changes: SetOption = None,
    profile: ProfileOption = None,
) -> None:  # fmt: skip
    """Every placement of a model, best first; how sure that is, and what would flip it.

    Example: layerwise rank --model config.json --gpus 16 --tpot-below 20ms
    """
    from scenarios.rank_inputs import RankInputs, resolve, tpot_s_of
    from scenarios.ranking import available_workers
    from scenarios.ranking import rank as rank_placements

    asked = resolve(RankInputs(
        model=model, num_gpus=gpus, gpu=gpu, gpus_per_node=gpus_per_node, batch_size=batch,
        context_tokens=context, launch=launch.value, changes=tuple(changes or ()),
    ))  # fmt: skip
    limit_s = tpot_s_of(tpot_below)
    if plot is not None:
        from scenarios.rank_plot import check_plot_path

        check_plot_path(plot)
    ranking = rank_placements(
        asked.model, asked.cluster, asked.workload, _profile(profile, asked.cluster.gpu.name),
        run=asked.run, tpot_below_s=limit_s, fits_only=fits_only, workers=available_workers(),
    )  # fmt: skip
    _note_changes(changes)
    if plot is not None:
        from scenarios.rank_plot import write_plot

        _note(write_plot(ranking, plot))
    if as_json:
        from scenarios.rank_json import ranking_as_data

        _print_json(ranking_as_data(ranking))
        return
    from scenarios.rank_tables import print_ranking
    from scenarios.tables import console

    print_ranking(ranking, console(), everything=everything)


@app.command(short_help="What this machine has for measuring.")
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
    from hw.host.doctor import examine, probes_here

    machine = examine(probes_here(), device.value, quick=quick)
    if as_json:
        from scenarios.doctoring import machine_as_data

        _print_json(machine_as_data(machine))
        return
    from scenarios.doctoring import print_machine
    from scenarios.tables import console

    print_machine(machine, console())


@app.command("what-if", short_help="Questions people ask, each a short script.")
def what_if(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which; all are listed.")] = "",
    axes: Annotated[
        list[str] | None,
        typer.Option("--axis", metavar="NAME=VALUE,...", help="Other points (repeatable)."),
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .svg, .png or .pdf.")
    ] = None,
    profile: ProfileOption = None,
) -> None:
    """Questions people ask, each a short script of scenarios/what_if; alone, it lists them.

    Example: layerwise what-if l2_capacity --axis l2_bytes=50MB,1GB,32GB
    """
    from scenarios.what_if.answering import answer_to, list_questions

    if not name:
        list_questions(as_json=as_json)
        return
    answer_to(name, axes or (), changes or (), profile, as_json=as_json, plot=plot)


@app.command(short_help="Predict every combination of a file's axes.")
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The rows: .csv or .parquet.")],
    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes; as many as cores by default.")
    ] = 0,
    dask: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A Dask cluster, or slurm (--workers N jobs).")
    ] = "",
    reuse: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Take over rows of another result (repeatable)."),
    ] = None,
    as_json: JsonOption = False,
    changes: SetOption = None,
    profile: ProfileOption = None,
) -> None:
    """Predict every combination of a file's axes. Run it again to go on after an interrupt.

    Example: layerwise sweep scenarios/sweeps/batch-and-context.toml --out rows.csv
    """
    from scenarios.sweep_command import sweep_to
    from scenarios.sweep_spec import load_sweep
    from sim.plan.overrides import parse_settings
    from sim.profile import load_profile

    asked = load_sweep(file, parse_settings(changes or ()))
    given = load_profile(profile) if profile else None
    outcome = sweep_to(
        asked, out, given, num_workers=workers, dask=dask, reuse=reuse or ()
    )  # fmt: skip
    _note_changes(changes)
    from scenarios.sweep_tables import outcome_as_data, print_outcome

    if as_json:
        _print_json(outcome_as_data(asked, outcome, out))
    else:
        from scenarios.tables import console

        print_outcome(asked, outcome, out, console())
    if outcome.interrupted:
        _note(f"stopped at {outcome.done:,} of {outcome.num_points:,}; run it again to go on")
        raise typer.Exit(130)


@app.command(short_help="Results as one page that works from disk.")
def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RESULT]...", help="Traces, scenarios, rank --json, sweep .csv."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path(
        "report.html"
    ),
    as_json: JsonOption = False,
    profile: ProfileOption = None,
) -> None:
    """Results as one page that works from disk; without any, the paper and all validation runs.

    Example: layerwise report trace.jsonl.gz scenario.toml --out report.html
    """
    from scenarios.report.making import make_report

    profiles = lru_cache(lambda gpu: _profile(profile, gpu))
    needed = lru_cache(lambda gpu: _needed_profile(profile, gpu))
    made = make_report(results or (), out, profiles, needed)
    for reason in made["left_out"]:
        _note(f"left out: {reason}")
    if as_json:
        _print_json(made)
    else:
        _note(f"{out}: {made['num_bytes'] / 1e6:.1f} MB, {made['num_charts']} charts; open it")


@app.command(short_help="A page on this machine whose controls simulate again.")
def explore(
    models: Annotated[
        list[Path] | None,
        typer.Option("--model", metavar="FILE", help="Also offer this config.json (repeatable)."),
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="0: any free one.")] = 0,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
) -> None:
    """A page for this machine's browser whose controls simulate again. Ctrl-C ends it.

    Example: layerwise explore --port 8000
    """
    from scenarios.report.making import serve

    profiles = lru_cache(lambda gpu: _profile(profile, gpu))
    serve(profiles, models or (), port, lambda url: (
        print(json.dumps({"url": url}), flush=True) if as_json else print(url, flush=True)
    ))  # fmt: skip


@app.command(short_help="The JSON schema of a scenario file, for an editor.")
def schema(
    _as_json: Annotated[bool, typer.Option("--json", help="It is JSON in any case.")] = False,
) -> None:
    """The JSON schema of a scenario file, for an editor's completion and checks.

    Example: layerwise schema > scenario.schema.json
    """
    from sim.plan.files import scenario_json_schema

    _print_json(scenario_json_schema())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. What goes wrong on purpose is one line on stderr and exit code 2."""
    from sim.plan.errors import LayerwiseError

    # A command makes millions of small objects and ends: collecting them is a tenth of its time.
    gc.set_threshold(200_000, 20, 20)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="layerwise")
    except LayerwiseError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        _note(f"layerwise: {' '.join(f'{error}{notes}'.split())}")
        sys.exit(getattr(error, "exit_code", 2))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os._exit(0)  # the reader has seen enough
        where = f"{error.filename}: " if error.filename else ""
        _note(f"layerwise: {where}{error.strerror}; name another place")
        os._exit(2)  # a normal exit would flush, and fail once more


def _profile(path: Path | None, gpu: str) -> Profile | None:
    """The given profile, the shipped one for this GPU, or none when none is shipped."""
    from calibration.data import profile_path
    from sim.profile import load_profile

    chosen = path or profile_path(gpu)
    return load_profile(chosen) if path or chosen.exists() else None


def _needed_profile(path: Path | None, gpu: str) -> Profile:
    from calibration.data import profile_path
    from sim.plan.errors import FileFormatError

    found = _profile(path, gpu)
    if found is None:
        raise FileFormatError(
            f"{profile_path(gpu)}: there is no calibration profile for {gpu}; "
            "give one with --profile FILE"
        )
    return found


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


def _note_changes(changes: Sequence[str] | None) -> None:
    if changes:
        _note(f"changed: {', '.join(changes)}")


def _note(text: str) -> None:
    """What a command did beside its answer: on stderr, so that stdout stays parseable."""
    from sim.plan.errors import visible

    print(visible(text, keep="\n"), file=sys.stderr)


if __name__ == "__main__":
    main()
