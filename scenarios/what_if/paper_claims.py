"""Which of the paper's numbers hold, and what would make the others true?"""

from layerwise.scenarios.paper.numbers import NAMES, Numbered, numbers
from layerwise.scenarios.what_if.figures import figure
from layerwise.scenarios.what_if.runner import Asked, Bars, Row, WhatIf


def shown(number: Numbered) -> Row:
    """One number as a row."""
    to = number.change
    words = f"{NAMES[to.key]} {figure(to.key, to.value)} ({to.factor:.3g} x)" if to else "-"
    return {
        "claim": number.claim,
        "claimed": figure(number.unit, number.claimed),
        "found": figure(number.unit, number.found),
        "ratio": number.found / number.claimed,
        "reading": number.reading.replace(" a ", " ").replace("-token context", "") or "any",
        "verdict": number.verdict,
        "true_with": words,
    }


def point(asked: Asked) -> list[Row]:
    """Every number of the paper."""
    profile = asked.profile_of(asked.scenario("layer-wise").cluster.gpu.name)
    return [shown(each) for each in numbers(profile, asked.settings)]


def answer(rows: list[Row]) -> str:
    """How many hold, and what the gain would take."""
    held = sum(row["verdict"] == "holds" for row in rows)
    gain = {row["claim"]: row for row in rows}["gain"]
    needs = "" if gain["verdict"] == "holds" else f" (true with: {gain['true_with']})"
    return f"{held} of {len(rows)} hold; the gain of {gain['claimed']} {gain['verdict']}{needs}."


WHAT_IF = WhatIf(
    question="Which of the paper's numbers hold, and what is the smallest change that would make the others true?",
    axes={},
    point=point,
    answer=answer,
    picture=Bars(label="claim", values=("ratio",), log_x=True),
    note="found: in the nearest reading; verdict: in decode at the full context; true with: one field changed.",
)
