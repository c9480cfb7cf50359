"""Commands that predict: paper, predict, what-if, rank, sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from layerwise.scenarios.commands.options import (
    MAX_SLICES,
    JsonOption,
    LaunchName,
    ModelName,
    OptionalScenario,
    PhaseName,
    ProfileOption,
    ScenarioArgument,
    SetOption,
    SlicesOption,
    TimelineOption,
    shipped,
)
from layerwise.scenarios.commands.shared import note, note_changes, print_json, profile_or_none


def paper(
    model: Annotated[
        ModelName, typer.Option(help="16 layers, or the 112 of 30 B.")
    ] = ModelName.PAPER_16,
    phase: Annotated[PhaseName, typer.Option(help="Decode, or prefill.")] = PhaseName.DECODE,
    launch: Annotated[LaunchName, typer.Option(help="CUDA graph, or eager.")] = LaunchName.GRAPH,
    as_json: JsonOption = False,
    trace: TimelineOption = None,
    trace_slices: SlicesOption = MAX_SLICES,
    changes: SetOption = None,
    profile: ProfileOption = None,
) -> None:
    """The paper's claims beside predictions and measurements, with a verdict for each.

    Example: layerwise paper --phase prefill
    """
    from layerwise.scenarios.paper.experiment import Question, ask, default_traces
    from layerwise.sim.plan.overrides import parse_settings

    question = Question(
        model=model.value,
        phase=phase.value,
        launch=launch.value,
        changes=parse_settings(changes or ()),
    )
    gpu = question.scenario("layer-wise").cluster.gpu.name
    report = ask(question, profile_or_none(profile, gpu), default_traces())
    note_changes(changes)
    if trace is not None:
        from layerwise.scenarios.predict.timeline import write_paper_timeline

        note(write_paper_timeline(report, trace, trace_slices))
    if as_json:
        from layerwise.scenarios.paper.as_data import report_as_data

        print_json("paper", report_as_data(report))
        return
    from layerwise.scenarios.paper.tables import print_report
    from layerwise.scenarios.tables import console

    print_report(report, console())


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
    burst: Annotated[
        bool, typer.Option("--burst", help="Of a burst after a rest, not of sustained work.")
    ] = False,
    trace: TimelineOption = None,
    trace_slices: SlicesOption = MAX_SLICES,
) -> None:
    """Predict a scenario: rates, times, memory, bottlenecks, clock and power.

    Example: layerwise predict scenario.toml --set cluster.gpu.hbm_bytes_per_s=6.7TB/s
    """
    from layerwise.scenarios.predict.beliefs import (
        commit_prediction,
        predict_all,
        predicted_as_data,
    )
    from layerwise.scenarios.predict.generated import (
        generate_all,
        generation_as_data,
        print_generated,
    )
    from layerwise.sim.plan.files import load_scenario
    from layerwise.sim.plan.overrides import parse_settings
    from layerwise.sim.resolve import resolve

    asked = load_scenario(scenario, parse_settings(changes or ()))
    if burst:
        asked = replace(asked, run=replace(asked.run, regime="burst"))
    plan = resolve(asked, profile_or_none(profile, asked.cluster.gpu.name))
    if commit_to is not None:
        note(commit_prediction(plan, commit_to))
        return
    beliefs = predict_all(plan)
    generated = generate_all(plan, beliefs, tokens) if tokens else {}
    note_changes(changes)
    if trace is not None:
        from layerwise.scenarios.predict.timeline import write_predicted_timeline

        note(write_predicted_timeline(beliefs.best, trace, trace_slices))
    if as_json:
        runs = {belief: generation_as_data(run) for belief, run in generated.items()}
        data = predicted_as_data(asked, plan, beliefs)
        print_json("predict", data | ({"generation": runs} if runs else {}))
        return
    from layerwise.scenarios.predict.tables import BELIEF_NAMES, print_predicted
    from layerwise.scenarios.tables import console

    print_predicted(asked, plan, beliefs, out := console())
    if generated:
        print_generated(generated, BELIEF_NAMES, out)


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
    from layerwise.scenarios.what_if.answering import answer_to, list_questions

    if not name:
        list_questions(as_json=as_json)
        return
    answer_to(name, axes or (), changes or (), profile, as_json=as_json, plot=plot)


def rank(
    scenario: OptionalScenario = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="paper-16, paper-30b, llama-3-8b, or a config.json."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="How many GPUs; all are used. [default: 16]")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="GPU", help="A known GPU, or a .toml. [default: h100-sxm]")
    ] = None,
    gpus_per_node: Annotated[
        int,
        typer.Option(metavar="N", help="0: the file's, or the most up to 8 that fill all nodes."),
    ] = 0,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences in flight. [default: 128]")
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens each of them holds. [default: 10000]")
    ] = None,
    tpot_below: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest time between tokens: 20ms.")
    ] = None,
    fits_only: Annotated[bool, typer.Option("--fits-only", help="Only what fits.")] = False,
    launch: Annotated[
        LaunchName | None, typer.Option(help="CUDA graph, or eager. [default: graph]")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print every row.")] = False,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the Pareto front (.png, .svg, .pdf).")
    ] = None,
    changes: SetOption = None,
    profile: ProfileOption = None,
) -> None:
    """Every placement of a model, best first; how sure that is, and what would flip it.

    The model, cluster, workload and run are a scenario file's, the options', or both: options
    replace what the file says, and --set what either says.

    Example: layerwise rank --model config.json --gpus 16 --tpot-below 20ms
    """
    from layerwise.scenarios.rank.inputs import RankInputs, left_out, resolve, tpot_s_of
    from layerwise.scenarios.rank.progress import showing_progress
    from layerwise.scenarios.rank.ranking import rank as rank_placements
    from layerwise.scenarios.rank.workers import available_workers
    from layerwise.scenarios.tables import console

    inputs = RankInputs(
        scenario=scenario,
        model=model,
        num_gpus=gpus,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        batch_size=batch,
        context_tokens=context,
        launch=launch.value if launch else None,
        changes=tuple(changes or ()),
    )
    asked = resolve(inputs)
    if scenario is not None:
        note(left_out(scenario, asked))
    limit_s = tpot_s_of(tpot_below)
    if plot is not None:
        from layerwise.scenarios.pictures import check_picture

        check_picture(plot, "the table")
    constants = profile_or_none(profile, asked.cluster.gpu.name)
    with showing_progress(console(stderr=True)) as progress:
        ranking = rank_placements(
            asked.model,
            asked.cluster,
            asked.workload,
            constants,
            run=asked.run,
            tpot_below_s=limit_s,
            fits_only=fits_only,
            workers=available_workers(),
            progress=progress,
        )
    note_changes(changes)
    if plot is not None:
        from layerwise.scenarios.rank.plot import write_plot

        note(write_plot(ranking, plot))
    if as_json:
        from layerwise.scenarios.rank.as_data import ranking_as_data

        print_json("rank", ranking_as_data(ranking))
        return
    from layerwise.scenarios.rank.tables import print_ranking

    print_ranking(ranking, console(), everything=everything)


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP",
            callback=shipped("SWEEP", "sweep"),
            help="A .toml file, or a shipped name: batch-and-context.",
        ),
    ],
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

    Example: layerwise sweep batch-and-context --out rows.csv
    """
    from layerwise.scenarios.sweep.command import sweep_to
    from layerwise.scenarios.sweep.spec import load_sweep
    from layerwise.sim.plan.overrides import parse_settings
    from layerwise.sim.profile import load_profile

    asked = load_sweep(file, parse_settings(changes or ()))
    given = load_profile(profile) if profile else None
    outcome = sweep_to(asked, out, given, num_workers=workers, dask=dask, reuse=reuse or ())
    note_changes(changes)
    from layerwise.scenarios.sweep.tables import outcome_as_data, print_outcome

    if as_json:
        print_json("sweep", outcome_as_data(asked, outcome, out))
    else:
        from layerwise.scenarios.tables import console

        print_outcome(asked, outcome, out, console())
    if outcome.interrupted:
        note(f"stopped at {outcome.done:,} of {outcome.num_points:,}; run it again to go on")
        raise typer.Exit(130)
