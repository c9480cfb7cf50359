"""Shared bandwidth: activities that draw on the same resources slow each other down.

An activity (a block of ops, a message) asks each of its resources for a rate. While a resource is
asked for more than it has, everyone on it is scaled by the same factor, and an activity runs at
the speed of its tightest resource. Uncontended activities cost one timeout.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import simpy

Resource = Hashable


@dataclass(slots=True, eq=False)
class _Activity:
    demands: Mapping[Resource, float]
    remaining_ps: float
    done: simpy.Event
    started_ps: int
    speed: float = 1.0
    version: int = 0


@dataclass(slots=True)
class FluidShare:
    """All shared resources of a simulation. `capacity` is in bytes/s per resource."""

    env: simpy.Environment
    capacity: dict[Resource, float]
    users: dict[Resource, list[_Activity]] = field(default_factory=dict)
    load: dict[Resource, float] = field(default_factory=dict)

    def run(self, duration_ps: int, demands: Mapping[Resource, float]) -> simpy.Event:
        """Start an activity that takes `duration_ps` alone, drawing `demands` bytes/s meanwhile.

        Returns the event of its end.
        """
        activity = _Activity(demands, float(duration_ps), self.env.event(), int(self.env.now))
        for resource, rate in demands.items():
            self.users.setdefault(resource, []).append(activity)
            self.load[resource] = self.load.get(resource, 0.0) + rate
        self._schedule(activity)
        if not self._is_free(demands):
            self._rebalance(demands)
        return activity.done

    def _is_free(self, demands: Mapping[Resource, float]) -> bool:
        """Nobody else is there, and there is enough: the common case, and the cheap one."""
        for resource, rate in demands.items():
            if len(self.users[resource]) > 1 or rate > self.capacity[resource]:
                return False
        return True

    def _factor(self, resource: Resource) -> float:
        load, capacity = self.load[resource], self.capacity[resource]
        # A block timed at the full rate must not slow itself down by rounding.
        return 1.0 if load <= capacity * (1 + 1e-9) else capacity / load

    def _speed(self, activity: _Activity) -> float:
        return min((self._factor(resource) for resource in activity.demands), default=1.0)

    def _rebalance(self, touched: Mapping[Resource, float]) -> None:
        seen: dict[_Activity, None] = {}
        for resource in touched:
            for activity in self.users[resource]:
                seen[activity] = None
        for activity in seen:
            speed = self._speed(activity)
            if speed != activity.speed:
                self._settle(activity)
                activity.speed = speed
                self._schedule(activity)

    def _settle(self, activity: _Activity) -> None:
        now = int(self.env.now)
        activity.remaining_ps -= (now - activity.started_ps) * activity.speed
        activity.started_ps = now

    def _schedule(self, activity: _Activity) -> None:
        activity.version += 1
        version = activity.version
        delay = max(0, round(activity.remaining_ps / activity.speed))
        timeout = self.env.timeout(delay)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda _: self._finish(activity, version))

    def _finish(self, activity: _Activity, version: int) -> None:
        if version != activity.version:
            return  # its speed changed meanwhile: a later timeout speaks for it
        for resource, rate in activity.demands.items():
            self.users[resource].remove(activity)
            self.load[resource] = self.load[resource] - rate if self.users[resource] else 0.0
        activity.done.succeed()
        if any(self.users[resource] for resource in activity.demands):
            self._rebalance(activity.demands)


Process = Generator[simpy.Event, Any, None]
