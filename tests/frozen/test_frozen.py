"""A sample of the frozen answers, asked again; `python -m tests.frozen --check` asks all of them."""

from __future__ import annotations

import json

import pytest

from tests.frozen.answers import differences, read_answers
from tests.frozen.questions import NUM_RANDOM, iter_answers, questions

# What takes longest, or has tests of its own, is asked by the command alone.
LONG = ("sweep", "rank", "accuracy", "what-if")
SAMPLE = [name for name in questions() if not name.startswith(LONG)][::12]


@pytest.mark.parametrize("name", SAMPLE)
def test_the_answer_is_the_frozen_one(name: str) -> None:
    asked = {each: json.loads(json.dumps(answer)) for each, answer in iter_answers([name])}

    assert differences(read_answers(), asked) == []


def test_every_question_has_an_answer_and_no_answer_lacks_its_question() -> None:
    assert set(questions()) == set(read_answers())


def test_all_random_scenarios_are_there() -> None:
    frozen = [
        number
        for name, answer in read_answers().items()
        if name.startswith("random")
        for number in answer
    ]

    assert len(set(frozen)) == NUM_RANDOM


def test_a_difference_in_the_last_bit_is_told() -> None:
    before = {"a": {"step_s": 0.1, "ops": ["x", 1]}}

    assert differences(before, {"a": {"step_s": 0.1, "ops": ["x", 1]}}) == []
    assert differences(before, {"a": {"step_s": 0.1 + 2e-17, "ops": ["x", 2]}}) == [
        "a/ops[1]: 1 -> 2",
        "a/step_s: 0.1 -> 0.10000000000000002",
    ]
