"""What a report is of: files sorted by what they are, or the paper and every validation run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from layerwise.scenarios.compare.choosing import Compared, choose_traces, compare_all
from layerwise.scenarios.predict.beliefs import predict_all
from layerwise.scenarios.report.of_files import json_section, sweep_section
from layerwise.scenarios.report.of_paper import l2_section, map_section, paper_sections
from layerwise.scenarios.report.of_runs import runs_section
from layerwise.scenarios.report.of_scenario import scenario_section
from layerwise.scenarios.report.sections import Section
from layerwise.sim.plan.errors import LayerwiseError, SpecError
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import resolve

TRACES = (".jsonl", ".jsonl.gz")
KINDS = "a trace (.jsonl, .jsonl.gz), a scenario (.toml), a sweep (.csv), `rank --json` (.json)"

Profiles = Callable[[str], Profile | None]
"""The profile of a GPU type, or none."""


@dataclass(kw_only=True)
class Found:
    """The parts of a report, and what could not be shown with the reason.

    `has_measured`: is a trace among them?
    """

    sections: list[Section] = field(default_factory=list[Section])
    left_out: list[str] = field(default_factory=list[str])
    has_measured: bool = False


def found_in(paths: Sequence[Path], profiles: Profiles, needed: Callable[[str], Profile]) -> Found:
    """A part for each file, all traces in one. `needed` raises where a GPU has no profile.

    A file that cannot be shown is left out and named. Raises SpecError when that is all of them.
    """
    found = Found()
    compared: list[Compared] = []
    for number, path in enumerate(paths, 1):
        try:
            if path.name.endswith(TRACES):
                compared += compare_all(choose_traces(None, path, False, needed), needed)
            else:
                found.sections.append(_section(path, f"result-{number}", profiles))
        except LayerwiseError as error:
            found.left_out.append(" ".join(str(error).split()))
        except OSError as error:
            found.left_out.append(f"{path}: {error.strerror}")
    if compared:
        found.has_measured = True
        found.sections.insert(0, runs_section(compared))
        for gpu in dict.fromkeys(each.profile.gpu for each in compared):
            found.sections += [s for s in (l2_section(needed(gpu)),) if s]
    if not found.sections:
        raise SpecError(
            "RESULT", ", ".join(map(str, paths)), "cannot be shown", "; ".join(found.left_out)
        )
    return found


def _section(path: Path, key: str, profiles: Profiles) -> Section:
    match path.suffix:
        case ".toml":
            scenario = load_scenario(path)
            plan = resolve(scenario, profiles(scenario.cluster.gpu.name))
            return scenario_section(scenario, predict_all(plan), key)
        case ".json":
            return json_section(path, key)
        case ".csv":
            return sweep_section(path, key)
        case _:
            raise SpecError(
                "RESULT", str(path), "is of no kind that a report shows", f"give {KINDS}"
            )


def committed(profiles: Profiles, needed: Callable[[str], Profile]) -> Found:
    """The paper's report, who wins, the L2 and every committed validation run."""
    from layerwise.scenarios.paper.experiment import Question, ask

    question = Question()
    profile = profiles(question.scenario("layer-wise").cluster.gpu.name)
    traces = choose_traces(None, None, True, needed) if profile else ()
    sections = paper_sections(ask(question, profile, traces))
    sections.append(map_section(profile))
    if profile:
        sections.append(runs_section(compare_all(traces, needed)))
        sections += [section for section in (l2_section(profile),) if section]
    return Found(sections=sections, has_measured=profile is not None)
