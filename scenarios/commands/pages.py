"""Commands for browsers and editors: report, explore, schema."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from layerwise.scenarios.commands.options import JsonOption, ProfileOption, shipped
from layerwise.scenarios.commands.shared import (
    needed_profile,
    note,
    print_json,
    print_plain_json,
    profile_or_none,
)

# Of one kind, what is still looked through.
MAX_NAMES = 40


def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RESULT]...",
            callback=shipped("RESULT", "trace", "scenario"),
            help="Traces, scenarios (also by name), rank --json, sweep .csv.",
        ),
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
    from layerwise.scenarios.report.making import make_report

    profiles = lru_cache(lambda gpu: profile_or_none(profile, gpu))
    needed = lru_cache(lambda gpu: needed_profile(profile, gpu))
    made = make_report(results or (), out, profiles, needed)
    for reason in made["left_out"]:
        note(f"left out: {reason}")
    if as_json:
        print_json("report", made)
    else:
        note(f"{out}: {made['num_bytes'] / 1e6:.1f} MB, {made['num_charts']} charts; open it")


def explore(
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            callback=shipped("--model", "model"),
            help="Also offer this config.json, or llama-3-8b; the page starts on the first (repeatable).",
        ),
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="0: any free one.")] = 0,
    as_json: JsonOption = False,
    profile: ProfileOption = None,
) -> None:
    """A page for this machine's browser whose controls simulate again. Ctrl-C ends it.

    Example: layerwise explore --port 8000
    """
    from layerwise.scenarios.report.making import serve

    profiles = lru_cache(lambda gpu: profile_or_none(profile, gpu))
    serve(
        profiles,
        models or (),
        port,
        lambda url: (
            print(json.dumps({"url": url}), flush=True) if as_json else print(url, flush=True)
        ),
    )


def schema(
    _as_json: Annotated[bool, typer.Option("--json", help="It is JSON in any case.")] = False,
) -> None:
    """The JSON schema of a scenario file, for an editor's completion and checks.

    Example: layerwise schema > scenario.schema.json
    """
    from layerwise.sim.plan.files import scenario_json_schema

    print_plain_json(scenario_json_schema())


def list_shipped(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND]...", help="scenario, sweep, model, profile, trace."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The scenarios, sweeps, models, profiles and traces that are here by name.

    A name stands wherever a command takes such a file. Of a kind with many names, its folders are
    told unless it is asked for.

    Example: layerwise shipped trace
    """
    from layerwise.scenarios.shipped import folders_of, shipped_names

    found = shipped_names(kinds or ())
    if as_json:
        print_plain_json(found)
        return
    for kind, names in found.items():
        print(f"{kind}:")
        if len(names) <= MAX_NAMES or kinds:
            print("".join(f"  {name}\n" for name in names), end="")
            continue
        for folder, number in folders_of(names).items():
            print(f"  {folder}/  {number} names")
        print(f"  (layerwise shipped {kind} lists them)")
