from __future__ import annotations

import simpy
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.machine.fluid import Activity, FluidShare, Resource


def ends(
    capacity: dict[str, float], activities: list[tuple[int, int, dict[str, float]]]
) -> list[int]:
    """When each activity (start, duration alone, demands) is over."""
    env = simpy.Environment()
    share = FluidShare(env)
    resources = {name: Resource(rate) for name, rate in capacity.items()}
    found = [-1] * len(activities)

    def live(index: int, start: int, duration: int, demands: dict[str, float]):
        yield env.timeout(start)
        done = env.event()
        drawn = [(resources[name], rate) for name, rate in demands.items()]
        share.start(duration, drawn, done.succeed)
        yield done
        found[index] = int(env.now)

    for index, activity in enumerate(activities):
        env.process(live(index, *activity))
    env.run()
    return found


def test_alone_takes_its_own_time() -> None:
    assert [1000] == ends({"hbm": 8.0}, [(0, 1000, {"hbm": 8.0})])


def test_two_equal_ones_take_twice_as_long() -> None:
    assert [2000, 2000] == ends({"hbm": 8.0}, [(0, 1000, {"hbm": 8.0})] * 2)


def test_demands_that_fit_together_do_not_slow_each_other() -> None:
    assert [1000, 1000] == ends({"hbm": 8.0}, [(0, 1000, {"hbm": 4.0})] * 2)


def test_other_resources_are_unaffected() -> None:
    busy = (0, 1000, {"hbm": 8.0})

    assert [2000, 2000, 1000] == ends(
        {"hbm": 8.0, "link": 8.0}, [busy, busy, (0, 1000, {"link": 8.0})]
    )


def test_late_one_slows_the_rest_only() -> None:
    assert [1500, 2000] == ends({"hbm": 8.0}, [(0, 1000, {"hbm": 8.0}), (500, 1000, {"hbm": 8.0})])


def test_speed_returns_when_the_other_is_over() -> None:
    assert [400, 1200] == ends({"hbm": 8.0}, [(0, 200, {"hbm": 8.0}), (0, 1000, {"hbm": 8.0})])


def test_speed_is_that_of_the_tightest_resource() -> None:
    shared = (0, 1000, {"hbm": 8.0, "link": 8.0})

    assert [3000, 3000, 3000] == ends(
        {"hbm": 16.0, "link": 8.0}, [shared, (0, 1000, {"link": 8.0}), (0, 1000, {"link": 8.0})]
    )


def test_nothing_to_do_is_over_at_once() -> None:
    assert [0] == ends({"hbm": 8.0}, [(0, 0, {"hbm": 8.0})])


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8))
def test_work_is_conserved_on_a_full_resource(durations: list[int]) -> None:
    last = max(ends({"hbm": 8.0}, [(0, duration, {"hbm": 8.0}) for duration in durations]))

    assert abs(sum(durations) - last) <= len(durations)


@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(1, 3000), st.floats(0.5, 8.0)),
        min_size=1,
        max_size=8,
    )
)
def test_sharing_never_makes_anything_faster(activities: list[tuple[int, int, float]]) -> None:
    over = ends({"hbm": 8.0}, [(s, d, {"hbm": rate}) for s, d, rate in activities])

    assert all(
        end >= start + duration - 1
        for end, (start, duration, _) in zip(over, activities, strict=True)
    )


class Slow:
    """A place where whoever comes runs at a quarter of its speed."""

    speed = 0.25

    def __init__(self) -> None:
        self.seen: list[str] = []

    def join(self, activity: Activity) -> None:
        del activity
        self.seen.append("join")

    def leave(self, activity: Activity) -> None:
        del activity
        self.seen.append("leave")


def test_activity_is_as_slow_as_the_place_it_runs_on() -> None:
    env, place, over = simpy.Environment(), Slow(), []
    FluidShare(env).start(1000, [], lambda: over.append(int(env.now)), [place])
    env.run()

    assert ([4000], ["join", "leave"]) == (over, place.seen)
