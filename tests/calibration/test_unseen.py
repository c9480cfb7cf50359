"""Points to score: none of them, and none of their shapes, is among the points to fit."""

from __future__ import annotations

from collections import Counter
from functools import cache

from layerwise.calibration.points import SweepPoint
from layerwise.calibration.selection import fit_layers
from layerwise.calibration.sweeps import HELD_OUT_CONTEXT, HELD_OUT_MATMULS, supplement, sweep
from layerwise.calibration.unseen import WARM_BYTES, shapes_of, unseen
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.scenario import compile_run

KERNELS = KernelChoice()


@cache
def scored() -> tuple[SweepPoint, ...]:
    return tuple(unseen(KERNELS))


def count(kind: str, suffix: str) -> int:
    return sum(p.kind == kind and p.name.endswith(suffix) for p in scored())


def test_names_are_unique() -> None:
    assert 1 == max(Counter(point.name for point in scored()).values())


def test_shapes_are_in_no_list_that_is_fitted() -> None:
    assert not shapes_of(scored()) & shapes_of((*sweep(KERNELS), *supplement(KERNELS)))


def test_matmuls_are_in_no_layer_that_is_fitted() -> None:
    placed = [each for layer in fit_layers() for each in compile_run(layer)[0].programs[0]]
    fitted = {(p.op.columns, p.op.inner) for p in placed if isinstance(p.op, ops.Matmul)}

    assert not shapes_of(scored()) & fitted


def test_warm_and_cold_counts() -> None:
    counts = {
        (kind, suffix): count(kind, suffix)
        for kind in ("matmul", "decode_attention")
        for suffix in ("warm", "cold")
    }

    assert {
        ("matmul", "cold"): 142,
        ("matmul", "warm"): 96,
        ("decode_attention", "cold"): 88,
        ("decode_attention", "warm"): 23,
    } == counts


def test_warm_weights_may_stay_in_the_l2() -> None:
    warm = [p.op for p in scored() if p.name.endswith("/warm") and isinstance(p.op, ops.Matmul)]

    assert all(op.weight.num_bytes <= WARM_BYTES for op in warm)


def test_paper_is_among_them() -> None:
    contexts = {p.op.context_tokens for p in scored() if isinstance(p.op, ops.Attention)}

    assert shapes_of(scored()) >= HELD_OUT_MATMULS
    assert HELD_OUT_CONTEXT in contexts


def test_same_seed_same_order() -> None:
    first, again, other = ([p.name for p in unseen(KERNELS, seed=seed)] for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
