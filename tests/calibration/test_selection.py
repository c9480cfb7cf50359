"""Layers to fit and layers to score: disjoint, named, and each what it says it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.calibration.selection import COLD_BYTES, cold, decode, fit_layers, validation_layers
from layerwise.sim.plan.files import load_scenario
from layerwise.sim.plan.scenario import Scenario, compile_run
from layerwise.sim.plan.validate import validate_run, validate_work

ROOT = Path(__file__).parents[2]
LAYERS = [*fit_layers(), *validation_layers()]


def weight_bytes(scenario: Scenario) -> int:
    return scenario.model.num_layers * scenario.model.layer_weight_bytes


def shape(scenario: Scenario) -> tuple[int, int, int]:
    """Width, sequences of a microbatch, context."""
    work = scenario.workload
    return scenario.model.hidden_size, work.batch_size // work.num_microbatches, work.context_tokens


def is_cold_by_layers(scenario: Scenario) -> bool:
    return scenario.model.num_layers > 1


def test_names_are_unique() -> None:
    assert 1 == max(Counter(layer.name for layer in LAYERS).values())


def test_name_says_the_shape() -> None:
    assert "h1024.kv8.l1.b8.c128.decode" == decode(1024, 8, 128).name
    assert "h1024.kv8.l9.b8.c128.decode" == cold(decode(1024, 8, 128)).name


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layer_compiles_for_one_gpu(layer: Scenario) -> None:
    run = compile_run(layer)
    validate_run(run)
    validate_work(layer.model, run)

    assert 1 == len(run[0].programs)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layer_fits_in_70_gb(layer: Scenario) -> None:
    tokens = layer.workload.batch_size * layer.workload.context_tokens
    kv_bytes = tokens * layer.model.num_layers * layer.model.kv_bytes_per_token_per_layer

    assert kv_bytes + weight_bytes(layer) < 70e9


def test_cold_layers_bring_more_weights_than_any_l2() -> None:
    several = [layer for layer in LAYERS if is_cold_by_layers(layer)]

    assert all(COLD_BYTES <= weight_bytes(layer) for layer in several)


def test_fit_and_validation_share_no_width() -> None:
    fitted, scored = (
        {layer.model.hidden_size for layer in layers}
        for layers in (fit_layers(), validation_layers())
    )

    assert not fitted & scored


def test_no_stage_that_is_fitted_has_a_scored_shape() -> None:
    stages = [load_scenario(path) for path in (ROOT / "scenarios" / "fit").glob("*.toml")]

    assert not set(map(shape, stages)) & set(map(shape, validation_layers()))


@pytest.mark.parametrize("hidden", [1024, 1280, 1536])
def test_around_the_l2_each_batch_and_context_is_measured_warm_and_cold(hidden: int) -> None:
    layers = [layer for layer in validation_layers() if layer.model.hidden_size == hidden]
    for several in (False, True):
        chosen = [layer.workload for layer in layers if is_cold_by_layers(layer) == several]
        assert {1, 8, 32} <= {work.batch_size for work in chosen}
        assert len({1024, 2500, 128} & {work.context_tokens for work in chosen}) == 3


def test_each_run_with_windows_comes_without_them_too() -> None:
    by_name = {layer.name: layer for layer in validation_layers()}
    kept = [layer for layer in by_name.values() if layer.run.persisting_weights]
    without = [replace(layer.run, persisting_weights=False) for layer in kept]

    assert {1024, 1536, 2048, 4096} == {layer.model.hidden_size for layer in kept}
    assert 5 == len(kept) == sum(name.endswith(".persist") for name in by_name)
    assert without == [by_name[layer.name.removesuffix(".persist")].run for layer in kept]


def test_both_kinds_of_attention_and_of_phase_are_scored() -> None:
    models = [layer.model for layer in validation_layers()]

    assert {True, False} == {m.num_attention_heads == m.num_key_value_heads for m in models}
    assert {"decode", "prefill"} == {layer.workload.phase for layer in validation_layers()}
