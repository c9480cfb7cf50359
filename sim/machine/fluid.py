"""Shared bandwidth: activities that draw on the same resources slow each other down.

An activity (a message, a collective) asks each of its resources for a rate. While a resource is
asked for more than it has, everyone on it is scaled by the same factor, and an activity runs at the
speed of its tightest resource, or of the busiest GPU that it runs on. Undisturbed, it costs one
timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import simpy

# A load that fits must not slow itself down by rounding.
ROUNDING = 1 + 1e-9


class Resource:
    """Something with a rate, and who draws on it now. `capacity` in bytes/s."""

    __slots__ = ("capacity", "limit", "load", "users")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.limit = capacity * ROUNDING
        self.load = 0.0
        self.users: list[Activity] = []

    @property
    def factor(self) -> float:
        """By how much everyone here is slowed down: 1 while there is enough."""
        load = self.load
        return 1.0 if load <= self.limit else self.capacity / load


Demand = tuple[Resource, float]


class Place(Protocol):
    """A GPU that an activity runs on, beside whatever else runs there."""

    def join(self, activity: Activity) -> None:
        """The activity starts."""
        ...

    def leave(self, activity: Activity) -> None:
        """The activity is over."""
        ...

    @property
    def speed(self) -> float:
        """How fast activities run here now, 1 being alone."""
        ...


class Activity:
    """Work that takes `remaining_ps` at full speed. `done` is called when it is over."""

    __slots__ = ("demands", "done", "places", "remaining_ps", "speed", "started_ps", "timer")

    def __init__(
        self,
        duration_ps: int,
        demands: Sequence[Demand],
        places: Sequence[Place],
        done: Callable[[], object],
    ) -> None:
        self.demands, self.places, self.done = demands, places, done
        self.remaining_ps: float = duration_ps
        self.speed = 1.0
        self.started_ps = 0
        self.timer: simpy.Event | None = None

    @property
    def allowed_speed(self) -> float:
        """What its resources and places allow."""
        factors = [resource.factor for resource, _ in self.demands]
        return min(factors + [place.speed for place in self.places], default=1.0)


class FluidShare:
    """Starts activities and keeps their speeds right."""

    __slots__ = ("env",)

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env

    def start(
        self,
        duration_ps: int,
        demands: Sequence[Demand],
        done: Callable[[], object],
        places: Sequence[Place] = (),
    ) -> None:
        """Start an activity that takes `duration_ps` alone, drawing `demands` meanwhile."""
        activity = Activity(duration_ps, demands, places, done)
        activity.started_ps = int(self.env.now)
        is_crowded = False
        for resource, rate in demands:
            resource.users.append(activity)
            resource.load = load = resource.load + rate
            is_crowded |= load > resource.limit
        for place in places:
            place.join(activity)
        if is_crowded:
            self.refresh(_users_of(demands))
        elif places:
            self.refresh([activity])
        if activity.timer is None:
            self._schedule(activity)

    def refresh(self, activities: Sequence[Activity]) -> None:
        """Give activities the speed they are allowed now."""
        for activity in activities:
            speed = activity.allowed_speed
            if speed != activity.speed:
                now = int(self.env.now)
                activity.remaining_ps -= (now - activity.started_ps) * activity.speed
                activity.started_ps = now
                activity.speed = speed
                self._schedule(activity)

    def _schedule(self, activity: Activity) -> None:
        delay = activity.remaining_ps
        if activity.speed != 1.0:
            delay = max(0, round(delay / activity.speed))
        timer = activity.timer = self.env.timeout(round(delay))
        callbacks = timer.callbacks
        assert callbacks is not None
        callbacks.append(lambda event: self._finish(activity, event))

    def _finish(self, activity: Activity, event: simpy.Event) -> None:
        if event is not activity.timer:
            return  # its speed changed meanwhile: a later timeout speaks for it
        was_crowded = False
        for resource, rate in activity.demands:
            was_crowded |= resource.load > resource.limit
            users = resource.users
            users.remove(activity)
            # Sums of floats drift: an empty resource carries nothing.
            resource.load = resource.load - rate if users else 0.0
        for place in activity.places:
            place.leave(activity)
        if was_crowded:
            self.refresh(_users_of(activity.demands))
        activity.done()


def _users_of(demands: Sequence[Demand]) -> list[Activity]:
    """Whoever draws on these resources, each once."""
    return list(dict.fromkeys(user for resource, _ in demands for user in resource.users))
