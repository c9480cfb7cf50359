"""The traces of a host's folder op by op, in the tables that `layerwise compare` prints."""

from __future__ import annotations

import io
from pathlib import Path

from layerwise.hw.series import trace_path
from layerwise.scenarios.compare.choosing import Compared
from layerwise.scenarios.compare.joined import compare
from layerwise.scenarios.compare.scores import Level
from layerwise.scenarios.compare.tables import print_comparisons
from layerwise.scenarios.predict.beliefs import CommittedPrediction
from layerwise.scenarios.predict.committed import earlier_than
from layerwise.scenarios.tables import WIDTH, PlainConsole
from layerwise.scenarios.whole_host.asked import HostRun
from layerwise.scenarios.whole_host.predictions import HostPrediction
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.profile import Profile
from layerwise.sim.trace import Trace, read_trace


def compare_folder(
    out: Path,
    prediction: HostPrediction,
    runs: tuple[HostRun, ...],
    profile: Profile,
    level: Level | None,
) -> str:
    """Write compare.txt and return it. A trace that cannot be compared is a line that says why."""
    file, compared, problems = io.StringIO(), list[Compared](), list[str]()
    for run in runs:
        path = trace_path(out / "traces", run.scenario)
        if not path.exists():
            continue
        try:
            compared.append(_compared(read_trace(path), prediction, profile, out))
        except LayerwiseError as error:
            problems.append(f"{run.name}: {type(error).__name__}: {error}")
    console = PlainConsole(highlight=False, emoji=False, width=WIDTH, file=file)
    print_comparisons(tuple(compared), console, level=level)
    text = file.getvalue() + "".join(f"{problem}\n" for problem in problems)
    (out / "compare.txt").write_text(text, encoding="utf-8")
    return text


def _compared(trace: Trace, prediction: HostPrediction, profile: Profile, out: Path) -> Compared:
    before = prediction.runs[trace.name]
    committed = CommittedPrediction(
        name=trace.name,
        profile_digest=prediction.profile_digest,
        ops=before.ops,
        predicted_step_s=before.step_s,
        created=prediction.created,
    )
    ran = trace.environment.get("date_utc", "")
    return Compared(
        comparison=compare(trace, profile),
        committed=committed,
        profile=profile,
        earlier=earlier_than(ran, out / "predictions.json", prediction.created),
    )
