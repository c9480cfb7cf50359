"""The command line `layerwise`. Everything heavy is imported by the command that needs it.

Exit codes: 0 an answer (a placement that does not fit is one), 1 a gate failed, 2 bad input, 130
interrupted. The commands themselves are in `layerwise.scenarios.commands`.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from layerwise.scenarios.commands import asking, calibrating, machines, measuring, pages
from layerwise.scenarios.commands.shared import note


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"layerwise {version('layerwise')}")
        except PackageNotFoundError:
            print("layerwise, not installed")
        raise typer.Exit


def layerwise(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "paper": (asking.paper, "The paper's claims beside predictions and measurements."),
    "predict": (asking.predict, "Predict a scenario: rates, times, memory, bottlenecks."),
    "rank": (asking.rank, "Every placement of a model, best first, and what flips it."),
    "what-if": (asking.what_if, "Questions people ask, each a short script."),
    "sweep": (asking.sweep, "Predict every combination of a file's axes."),
    "doctor": (measuring.doctor, "What this machine has for measuring."),
    "measure": (measuring.measure, "Run a scenario for real and write its trace."),
    "recover": (measuring.recover, "A trace of a run that nobody could save."),
    "compare": (measuring.compare, "Predicted beside measured, op by op; a gate."),
    "calibrate": (
        calibrating.calibrate,
        "Measure this machine's GPU, fit, score, write a profile.",
    ),
    "accuracy": (calibrating.accuracy, "What no fit has seen, predicted again; a gate."),
    "links": (machines.links, "Time messages between GPUs, by payload."),
    "overlap": (machines.overlap, "What messages and kernels cost each other."),
    "counters": (machines.counters, "Bytes of each op, counted by Nsight Compute."),
    "figures": (machines.figures, "What the engine reaches beside its bars; a gate."),
    "host": (machines.host, "A whole host: predicted, measured, compared."),
    "report": (pages.report, "Results as one page that works from disk."),
    "explore": (pages.explore, "A page on this machine whose controls simulate again."),
    "shipped": (pages.list_shipped, "The names of the files that come with it."),
    "schema": (pages.schema, "The JSON schema of a scenario file, for an editor."),
}
"""Every command by its name, with its line in the list of all."""


def _unasked() -> None:
    """Stand in for a command that is only listed: reading all options takes 50 ms."""


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """Make the command line with the options of the command that is asked for, and names of others."""
    app = typer.Typer(
        name="layerwise",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Where to place a model: predicted by simulation, measured on GPUs, side by side.",
        epilog="Exit codes: 0 an answer (also: it does not fit), 1 a gate failed, 2 bad input, "
        "130 interrupted. Quantities are in SI units, or as people write them: 20ms, 450GB/s, 11GiB. "
        "Begin with: layerwise paper",
    )
    app.callback()(layerwise)
    asked = next((each for each in arguments if not each.startswith("-")), "")
    completing = "_LAYERWISE_COMPLETE" in os.environ  # a shell asks, for any command's options
    for name, (function, line) in COMMANDS.items():
        app.command(name, short_help=line)(function if name == asked or completing else _unasked)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. What goes wrong on purpose is one line on stderr and exit code 2."""
    from layerwise.sim.plan.errors import LayerwiseError

    # A command makes millions of small objects and ends: collecting them is a tenth of its time.
    gc.set_threshold(200_000, 20, 20)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app_for(given)(args=given, prog_name="layerwise", obj=given)
    except LayerwiseError as error:
        notes = "".join(f"; {added}" for added in getattr(error, "__notes__", ()))
        note(f"layerwise: {' '.join(f'{error}{notes}'.split())}")
        sys.exit(getattr(error, "exit_code", 2))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os._exit(0)  # the reader has seen enough
        where = f"{error.filename}: " if error.filename else ""
        note(f"layerwise: {where}{error.strerror}; name another place")
        os._exit(2)  # a normal exit would flush, and fail once more


if __name__ == "__main__":
    main()
