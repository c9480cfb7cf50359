"""Points at the edges of what models ask for: `--what edges`.

Head matmuls over vocabularies to 262,144, embedding and argmax beside them, attention in heads of
64, 96 and 256, decode attention with few pairs of sequence and KV head, narrow matmuls. The points
are those of the committed file, by their names, so that another GPU is measured at the same ones.
A fifth of each kind never enters a fit: `set_aside`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable

from layerwise.calibration.data import FOLDER
from layerwise.calibration.points import (
    SweepPoint,
    attention_point,
    embed_point,
    matmul_point,
    sample_point,
)
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.errors import FileFormatError

EDGES_FILE = "edges.jsonl"
NAMES = FOLDER / "traces" / "fit-h200" / EDGES_FILE
ASIDE_SEED, ASIDE_SHARE = 16, 0.2
# The number of a point's name behind each letter: `s47.h8.kv2.c6514.d256`.
FIELD = re.compile(r"([a-z]+)(\d+)")


def edges(kernels: KernelChoice) -> list[SweepPoint]:
    """Every point, those that only score among them; none where the file is not there."""
    if not NAMES.exists():
        return []
    lines = NAMES.read_text(encoding="utf-8").splitlines()
    return [point_named(json.loads(line)["name"], kernels) for line in lines]


def fitted_edges(kernels: KernelChoice) -> list[SweepPoint]:
    """The points that a fit may see."""
    found = edges(kernels)
    aside = not_fitted(point.name for point in found)
    return [point for point in found if point.name not in aside]


def not_fitted(names: Iterable[str]) -> frozenset[str]:
    """Those that only score, and decode in heads of 96, which have no kind of their own to fit."""
    named = list(names)
    return set_aside(named) | {
        name for name in named if name.startswith("decode_attention/") and ".d96/" in name
    }


def set_aside(names: Iterable[str]) -> frozenset[str]:
    """The points of these that no fit may see: of each kind and head size a fifth, by the seed."""
    rng, groups = random.Random(ASIDE_SEED), dict[tuple[str, int], list[str]]()
    for name in sorted(names):
        groups.setdefault((name.partition("/")[0], _fields(name).get("d", 0)), []).append(name)
    chosen = (rng.sample(found, round(ASIDE_SHARE * len(found))) for found in groups.values())
    return frozenset(name for part in chosen for name in part)


def point_named(name: str, kernels: KernelChoice) -> SweepPoint:
    """Make the point of a name: `decode_attention/s47.h8.kv2.c6514.d256/cold`.

    Raises FileFormatError for a name of no such kind.
    """
    kind, label, _ = name.split("/")
    sizes = _fields(name)
    match kind:
        case "matmul" | "matmul.skinny":
            kernel = "skinny" if kind == "matmul.skinny" else "cublas"
            return matmul_point(sizes["m"], sizes["n"], sizes["k"], kernel=kernel)
        case "embed":
            return embed_point(sizes["t"], sizes["h"], sizes["v"], label)
        case "sample":
            return sample_point(sizes["s"], sizes["v"])
        case "decode_attention" | "prefill_attention" | "chunked_prefill_attention":
            return attention_point(
                sizes["s"],
                sizes["h"],
                sizes["kv"],
                sizes.get("q", 1),
                sizes["c"],
                getattr(kernels, kind),
                head_dim=sizes.get("d", 128),
            )
        case _:
            raise FileFormatError(f"{name!r} is no point of {EDGES_FILE}; measure again")


def _fields(name: str) -> dict[str, int]:
    return {letter: int(size) for letter, size in FIELD.findall(name.split("/")[1])}
