"""The pre-flight check printed: one line per piece, a verdict, and what its lack costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console

from layerwise.hw.host.doctor import Machine
from layerwise.scenarios.measure.diagnosis import Finding, findings_of, has_torch
from layerwise.scenarios.tables import escape, table

STYLES = {"ok": "green", "missing": "red", "slow": "yellow"}


def print_machine(machine: Machine, out: Console) -> None:
    """A table per section, then what can be done here."""
    findings = findings_of(machine)
    for section, group in groupby(findings, key=lambda finding: finding.section):
        printed = table(section, "piece", "verdict", "found", wide="found")
        for finding in group:
            style = STYLES[finding.verdict]
            verdict = f"[{style}]{finding.verdict}[/{style}]"
            printed.add_row(escape(finding.piece), verdict, _text(finding))
        out.print(printed)
        out.print()
    for line in abilities_of(machine):
        out.print(f"- {escape(line)}")
    counts = Counter(finding.verdict for finding in findings)
    out.print(f"{counts['ok']} ok, {counts['missing']} missing, {counts['slow']} slow")


def machine_as_data(machine: Machine) -> dict[str, Any]:
    """Findings, abilities and all that was found, in SI units."""
    return {
        "findings": [asdict(finding) for finding in findings_of(machine)],
        "abilities": list(abilities_of(machine)),
        "machine": asdict(machine),
    }


def abilities_of(machine: Machine) -> tuple[str, ...]:
    """What can be done here, in sentences."""
    can_predict = machine.versions["simpy"] and machine.versions["pydantic"]
    predicts = "works" if can_predict else "does not work (see software)"
    lines = [f"predicting (paper, predict, compare) {predicts}: it needs no GPU"]
    if not has_torch(machine):
        return (*lines, "measuring does not work: there is no torch")
    lines.append("measuring on the CPU works: gloo, eager, --device cpu")
    if not machine.looked_at_gpus:
        return (*lines, "measuring on GPUs was not looked at (--device cpu)")
    if not machine.gpus:
        return (*lines, "measuring on GPUs does not work here")
    reach = f"placements of up to {len(machine.gpus)} ranks"
    return (*lines, f"measuring on GPUs works: {reach}, or any rank alone with run.only_rank")


def _text(finding: Finding) -> str:
    cost = f"\ncosts: {escape(finding.cost)}" if finding.cost else ""
    return f"{escape(finding.found)}{cost}"
