from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import simpy

from layerwise.sim.machine.fluid import FluidShare
from layerwise.sim.machine.gpu import Gpu, OpStream, PlannedBlock
from tests.sim.scenes import FlatCost


@dataclass
class Scene:
    """One GPU with ops of 1,000 ps and messages beside them."""

    op_speed: float = 0.5
    message_speed: float = 0.25
    env: simpy.Environment = field(default_factory=simpy.Environment)
    log: list[int] = field(default_factory=list[int])
    arrived: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        cost = FlatCost(op_speed=self.op_speed, message_speed=self.message_speed)
        self.share = FluidShare(self.env)
        self.gpu = Gpu(cost, self.share)

    def ops(self, count: int) -> None:
        """Start a stream of `count` ops now."""
        process: Any = SimpleNamespace(
            machine=SimpleNamespace(env=self.env, share=self.share),
            log=SimpleNamespace(op_ends=self.log),
            is_eager=False,
        )
        plan = PlannedBlock([0] * count, [1000] * count, ["hbm"] * count, {})
        OpStream(process, self.gpu, plan, self.env.event()).begin(int(self.env.now))

    def message(self, at: int, duration: int) -> None:
        """Offer a message: it starts when the GPU has SMs for it."""

        def start() -> None:
            over = lambda: self.arrived.append(int(self.env.now))  # noqa: E731
            self.share.start(duration, (), over, (self.gpu,))

        self.env.timeout(at).callbacks.append(  # type: ignore[union-attr]
            lambda _: self.gpu.at_boundary(start)
        )

    def op_ends(self) -> list[int]:
        self.env.run()
        return self.log


def test_ops_alone_follow_one_another() -> None:
    scene = Scene()
    scene.ops(3)

    assert [1000, 2000, 3000] == scene.op_ends()


def test_message_waits_for_the_end_of_the_running_op() -> None:
    scene = Scene(message_speed=1.0)
    scene.ops(2)
    scene.message(at=300, duration=100)
    scene.op_ends()

    assert [1100] == scene.arrived


def test_message_on_an_idle_gpu_starts_at_once() -> None:
    scene = Scene()
    scene.message(at=300, duration=100)
    scene.env.run()

    assert [400] == scene.arrived


def test_op_is_slowed_while_a_message_runs_and_no_longer() -> None:
    scene = Scene(message_speed=1.0)
    scene.ops(2)
    scene.message(at=300, duration=100)

    # The second op runs at half its speed for the message's 100 ps: 50 ps are lost.
    assert [1000, 2050] == scene.op_ends()


def test_message_is_slowed_while_an_op_runs_beside_it() -> None:
    scene = Scene(op_speed=1.0)
    scene.ops(2)
    scene.message(at=300, duration=1000)
    scene.op_ends()

    # A quarter of it in the second op's 1,000 ps, the rest alone.
    assert [2000 + 750] == scene.arrived


def test_two_messages_slow_an_op_like_one() -> None:
    scene = Scene(message_speed=1.0)
    scene.ops(2)
    for _ in range(2):
        scene.message(at=300, duration=100)

    assert [1000, 2050] == scene.op_ends()


def test_eager_op_starts_when_its_gap_is_over_and_the_host_has_issued_it() -> None:
    scene = Scene()
    process: Any = SimpleNamespace(
        machine=SimpleNamespace(env=scene.env, share=scene.share),
        log=SimpleNamespace(op_ends=scene.log),
        is_eager=True,
        host_ps=0,
        issue_ps=900,
    )
    # A gap of 100 ps and a kernel of 900.
    plan = PlannedBlock([100] * 3, [1000] * 3, ["hbm"] * 3, {})
    OpStream(process, scene.gpu, plan, scene.env.event()).begin(0)

    # Issued at 900, 1,800 and 2,700: the first is late, and the others find the stream busy.
    assert [1800, 2800, 3800] == scene.op_ends()
