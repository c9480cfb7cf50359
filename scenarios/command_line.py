"""The command line `layerwise`. Everything heavy is imported by the command that needs it.

Exit codes: 0 an answer (a placement that does not fit is one), 1 a gate failed, 2 bad input, 130
interrupted. The commands themselves are in `layerwise.scenarios.commands`.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from layerwise.scenarios.commands import asking, calibrating, machines, measuring, pages
from layerwise.scenarios.commands.shared import note

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
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


app.command(short_help="The paper's claims beside predictions and measurements.")(asking.paper)
app.command(short_help="Predict a scenario: rates, times, memory, bottlenecks.")(asking.predict)
app.command(short_help="Every placement of a model, best first, and what flips it.")(asking.rank)
app.command("what-if", short_help="Questions people ask, each a short script.")(asking.what_if)
app.command(short_help="Predict every combination of a file's axes.")(asking.sweep)
app.command(short_help="What this machine has for measuring.")(measuring.doctor)
app.command(short_help="Run a scenario for real and write its trace.")(measuring.measure)
app.command(short_help="A trace of a run that nobody could save.")(measuring.recover)
app.command(short_help="Predicted beside measured, op by op; a gate.")(measuring.compare)
app.command(short_help="Measure this machine's GPU, fit, score, write a profile.")(
    calibrating.calibrate
)
app.command(short_help="What no fit has seen, predicted again; a gate.")(calibrating.accuracy)
app.command(short_help="Time messages between GPUs, by payload.")(machines.links)
app.command(short_help="What messages and kernels cost each other.")(machines.overlap)
app.command(short_help="Bytes of each op, counted by Nsight Compute.")(machines.counters)
app.command(short_help="What the engine reaches beside its bars; a gate.")(machines.figures)
app.command(short_help="A whole host: predicted, measured, compared.")(machines.host)
app.command(short_help="Results as one page that works from disk.")(pages.report)
app.command(short_help="A page on this machine whose controls simulate again.")(pages.explore)
app.command("shipped", short_help="The names of the files that come with it.")(pages.list_shipped)
app.command(short_help="The JSON schema of a scenario file, for an editor.")(pages.schema)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. What goes wrong on purpose is one line on stderr and exit code 2."""
    from layerwise.sim.plan.errors import LayerwiseError

    # A command makes millions of small objects and ends: collecting them is a tenth of its time.
    gc.set_threshold(200_000, 20, 20)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="layerwise", obj=given)
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
