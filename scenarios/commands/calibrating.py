"""Commands that make profiles and judge them: calibrate, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerwise.scenarios.commands.options import JsonOption, ProfileOption, parse_seconds, shipped
from layerwise.scenarios.commands.shared import check_gpu, needed_profile, note, print_json


def calibrate(
    collect: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only measure this machine's GPU, here.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only fit the measurements in a folder.")
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            metavar="PROFILE",
            callback=shipped("--anchor", "profile"),
            help="Move a profile (a file, or h200) to this machine.",
        ),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            "--for",
            metavar="SCENARIO",
            callback=shipped("--for", "scenario"),
            help="Measure the shapes it needs.",
        ),
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take messages and collectives that `links` timed."),
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
        typer.Option(
            parser=parse_seconds,
            metavar="TIME",
            help="Time to measure; 10min, to anchor 5min, for a scenario 2min.",
        ),
    ] = 0.0,
    gpu: Annotated[str, typer.Option(help="The GPU; found out where it is measured.")] = "",
    name: Annotated[str, typer.Option(help="The profile's name; the GPU's by default.")] = "",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine's GPU, fit, score on points kept apart, write a profile and its faults.

    With --collect or --fit one half of that, and with --fit and --profile the kinds of op that the
    profile lacks; --anchor moves a shipped profile here in minutes;
    --for measures what one scenario needs; --links puts what `layerwise links` timed into a
    profile. What was measured is kept: run it again to go on.

    Example: layerwise calibrate --out profile.json --budget-s 600
    """
    from layerwise.scenarios.calibrate.calibrating import Asked
    from layerwise.scenarios.calibrate.calibrating import calibrate as run
    from layerwise.scenarios.tables import console

    check_gpu(gpu, "a .toml file is predicted from its datasheet, without a profile")
    asked = Asked(
        collect=collect,
        fit=fit,
        anchor=anchor,
        scenario=scenario,
        links=links,
        out=out,
        what=tuple(what or ()),
        budget_s=budget_s,
        gpu=gpu,
        name=name,
        profile=profile,
    )
    said = run(asked, console(stderr=as_json), note)
    if as_json:
        from layerwise.scenarios.commands.written import calibrated_as_data

        print_json("calibrate", calibrated_as_data(out, said))
    else:
        note(said)


def accuracy(
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measurements; the committed ones by default."),
    ] = None,
    commit_to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write predictions ahead of a run.")
    ] = None,
    as_json: JsonOption = False,
    gpu: Annotated[
        str, typer.Option(help="The GPU that was measured; the profile's, or h100-sxm.")
    ] = "",
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Fail where a family worsened since it was written."),
    ] = None,
    red: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pass only if exactly this list of bars is missed."),
    ] = None,
    update_ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the ledger again; show old and new.")
    ] = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why it may ask for less; written into it.")
    ] = "",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw errors and intervals (.svg, .png).")
    ] = None,
    profile: ProfileOption = None,
) -> None:
    """What no fit has seen, predicted again; exit code 1 where a family misses its bar.

    With --red FILE exit code 1 where what is in red is not what the file lists, with --ledger FILE
    where a measurement is lost or a family worsened; with both, where either is so.

    Example: layerwise accuracy --gpu h200 --json
    """
    check_gpu(gpu, "give its profile, --profile FILE")
    constants = needed_profile(profile, gpu or "h100-sxm")
    if gpu and constants.gpu != gpu:
        from layerwise.sim.plan.errors import SpecError

        raise SpecError("--gpu", gpu, f"is not the profile's, {constants.gpu}", "leave one out")
    if commit_to is not None:
        from layerwise.calibration.selection import SCORED_SIZES_BYTES
        from layerwise.scenarios.accuracy.predictions import commit_unseen

        note(commit_unseen(constants, commit_to, SCORED_SIZES_BYTES))
        return
    from layerwise.scenarios.accuracy.bars import passes
    from layerwise.scenarios.accuracy.gate import gate_as_data, print_gate, read_gate
    from layerwise.scenarios.accuracy.scoring import score_unseen
    from layerwise.scenarios.accuracy.tables import accuracy_as_data, print_accuracy
    from layerwise.scenarios.tables import console

    held_to = read_gate(
        constants.gpu, ledger, red
    )  # a broken file is told before minutes of scoring
    if plot is not None:
        from layerwise.scenarios.pictures import check_picture

        check_picture(plot, "the tables and --json")
    scored = score_unseen(constants, folder)
    if plot is not None:
        from layerwise.scenarios.accuracy.plot import write_plot

        note(write_plot(scored, constants, plot))
    if update_ledger is not None:
        from layerwise.scenarios.accuracy.ledger_update import update_and_print

        note(update_and_print(update_ledger, scored, constants, reason, console(stderr=as_json)))
        if held_to is None:
            return
    if held_to is None:
        passed = passes(scored)
        if as_json:
            print_json("accuracy", accuracy_as_data(scored, constants))
        else:
            print_accuracy(scored, constants, console())
    else:
        problems = held_to.problems(scored)
        passed = not problems
        if as_json:
            print_json("accuracy-gate", gate_as_data(constants.gpu, scored, problems))
        else:
            print_gate(held_to, scored, problems, console())
    if not passed:
        raise typer.Exit(1)
