"""10,000 files gone wrong: each is read, or refused in words, within a second; nothing else happens."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.calibration.links import read_links
from layerwise.calibration.transfers import read_transfers
from layerwise.hw.ranks.journal import assemble, folder_of, journal_of
from layerwise.scenarios.accuracy.ledger import read_ledger
from layerwise.scenarios.accuracy.red import read_red
from layerwise.scenarios.predict.beliefs import read_prediction
from layerwise.scenarios.sweep.journal import read_rows
from layerwise.scenarios.sweep.spec import load_sweep
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.plan.files import load_gpu, load_model_config, load_scenario, scenario_from_data
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.profile import Profile, load_profile, write_profile
from layerwise.sim.trace import Trace, as_data, read_trace, write_trace
from tests.scenarios.conftest import fake_trace
from tests.scenarios.mutations import (
    Mutation,
    mutated_bytes,
    mutated_gzip,
    mutated_json,
    mutated_lines,
    mutated_toml,
    mutated_whole,
)

SLOWEST_S = 1.0
ROOT = Path(__file__).parents[2]
SCENARIO = b"""\
name = "stage"

[model]
preset = "paper-16"
num_layers = 16
hidden_size = 4096
num_attention_heads = 32
num_key_value_heads = 8
rope_theta = 500000.0

[cluster]
gpu = "h100-sxm"
num_gpus = 16
gpus_per_node = 8

[placement]
strategy = "layer-wise"
data_parallel = 1
on_chip_bytes = "50MB"

[workload]
phase = "decode"
batch_size = 128
context_tokens = 10000
num_microbatches = 16
prefill_chunk_tokens = 2048

[run]
launch = "graph"
num_steps = 4
only_rank = 5
context_growth_tokens = 0
repeats = 20
steps_per_graph = 1

[kernels]
decode_attention = "split_kv"
"""
SWEEP = b"""\
name = "map"
beliefs = ["calibrated"]
zip = [["workload.batch_size", "workload.num_microbatches"]]

[base]
paper = "layer-wise"
model = "paper-16"

[axes]
"workload.batch_size" = [16, 32, 64]
"workload.num_microbatches" = [1, 2, 4]
"workload.context_tokens" = {from = 128, to = 131072, factor = 2}
"cluster.gpu.l2_bytes" = ["50MB", "1GB"]
"""
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "head_dim": 128,
    "tie_word_embeddings": False,
    "rope_scaling": {"factor": 8.0},
    "attention_bias": False,
}
GPU = "".join(
    f"{key} = {json.dumps(value)}\n" for key, value in as_data(GPUS["h100-sxm"]).items()
).encode()


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, a good one, who reads it, what goes wrong with it, how often."""

    name: str
    seed: Callable[[Path, Profile], bytes]
    load: Callable[[Path], Any]
    mutations: tuple[Mutation, ...]
    num_cases: int


def profile_seed(folder: Path, profile: Profile) -> bytes:
    kept = ("matmul", "norm")
    small = replace(profile, fits={k: fit for k, fit in profile.fits.items() if k in kept})
    write_profile(small, folder / "seed")
    return (folder / "seed").read_bytes()


def short_trace(profile: Profile) -> Trace:
    trace = fake_trace(profile)
    return replace(trace, rows=trace.rows[:20])


def trace_seed(folder: Path, profile: Profile) -> bytes:
    write_trace(short_trace(profile), folder / "seed")
    return (folder / "seed").read_bytes()


def journal_seed(folder: Path, profile: Profile) -> bytes:
    trace, out = short_trace(profile), folder / "trace.jsonl"
    journal = journal_of(out, 0)
    journal.begin(trace, num_ranks=1, timed_ranks=[0])
    journal.times("untraced_step_s", [0.001, 0.002])
    journal.rows(trace.rows)
    return (folder_of(out) / "rank-0.jsonl").read_bytes()


def links_seed(_folder: Path, _profile: Profile) -> bytes:
    data = json.loads((ROOT / "calibration/traces/two-h200/links.json").read_bytes())
    if isinstance(data, dict):
        data["timings"] = data["timings"][:6]
    return json.dumps(data).encode()


def ledger_seed(_folder: Path, _profile: Profile) -> bytes:
    entry = {
        "group": "ops",
        "name": "x",
        "measured_s": 1.0,
        "predicted_s": 1.1,
        "error": 0.1,
        "tolerance": 0.2,
        "spread": 0.01,
        "kernel_set": "k",
        "reason": "",
    }
    update = {"date_utc": "2026-01-01", "profile_digest": "d", "reason": "", "changed": "all"}
    return json.dumps(
        {
            "format": "layerwise-ledger",
            "version": 1,
            "gpu": "h100-sxm",
            "profile_digest": "d",
            "history": [update],
            "entries": [entry],
            "aggregates": [
                {"name": "ops: median |error|", "value": 0.1, "noise": 0.01, "reason": ""}
            ],
        }
    ).encode()


RED = b"""\
[[family]]
gpu = "h200"
name = "90 % intervals"
misses = ["width"]
cause = "Tails."

[[cause]]
family = "matmul, M <= 1024"
text = "Another kernel."
points.h200 = ["matmul/m1.n64.k64/cold", "x"]
"""


def committed(name: str) -> Callable[[Path, Profile], bytes]:
    return lambda _folder, _profile: (ROOT / "calibration" / name).read_bytes()


def fixed(data: bytes) -> Callable[[Path, Profile], bytes]:
    return lambda _folder, _profile: data


def load_trace(path: Path) -> None:
    scenario_from_data(read_trace(path).scenario, "its scenario")


def load_journal(path: Path) -> None:
    assemble(path.parent)


TOML = (mutated_toml, mutated_toml, mutated_toml, mutated_bytes, mutated_whole)
JSON = (mutated_json, mutated_json, mutated_json, mutated_bytes, mutated_whole)
LINES = (mutated_lines, mutated_lines, mutated_lines, mutated_bytes, mutated_whole)
KINDS = (
    Kind("scenario.toml", fixed(SCENARIO), load_scenario, TOML, 1900),
    Kind("gpu.toml", fixed(GPU), load_gpu, TOML, 700),
    Kind("config.json", fixed(json.dumps(CONFIG).encode()), load_model_config, JSON, 1900),
    Kind("profile.json", profile_seed, load_profile, JSON, 1000),
    Kind("trace.jsonl", trace_seed, load_trace, LINES, 1300),
    Kind("trace.jsonl.gz", trace_seed, load_trace, (mutated_gzip,), 400),
    Kind("rank-0.jsonl", journal_seed, load_journal, LINES, 800),
    Kind("sweep.toml", fixed(SWEEP), load_sweep, TOML, 600),
    Kind("links.json", links_seed, read_links, JSON, 400),
    Kind("transfers.json", committed("transfers.json"), read_transfers, JSON, 300),
    Kind("prediction.json", committed("predictions/stage-8.json"), read_prediction, JSON, 400),
    Kind("ledger.json", ledger_seed, read_ledger, JSON, 200),
    Kind("red.toml", fixed(RED), read_red, TOML, 200),
    Kind(
        "rows.csv",
        fixed(b"a,status,reason,key\n1,ok,,x\n2,ok,,y\n"),
        read_rows,
        (mutated_bytes, mutated_whole),
        100,
    ),
)

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What runs code, or changes something, by the names of Python's audit events.
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.find_class",
    "marshal.",
    "subprocess.",
    "os.",
    "shutil.",
    "socket.",
    "ctypes.",
    "tempfile.",
    "urllib.",
    "sqlite3.",
    "pty.",
)
HARMLESS = ("os.listdir", "os.scandir")
_heard: list[list[str]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's audit hook: it stays for good, and does nothing while nobody listens."""
    if not _heard:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        _heard[-1].append(f"opened {arguments[0]!r} to write")
    if event.startswith(FORBIDDEN) and event not in HARMLESS:
        _heard[-1].append(f"{event} {arguments[:1]!r}")


@contextmanager
def listening() -> Generator[list[str]]:
    """What is run or written inside."""
    if _hear not in _hooked:
        _hooked.append(_hear)
        sys.addaudithook(_hear)
    _heard.append(found := [])
    try:
        yield found
    finally:
        _heard.pop()


_hooked: list[Any] = []


def test_there_are_10_000_of_them_or_more() -> None:
    assert sum(kind.num_cases for kind in KINDS) >= 10_000


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_mutated_file_is_read_or_refused(
    kind: Kind, tmp_path: Path, profile: Profile
) -> None:
    seed = kind.seed(tmp_path, profile)
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / kind.name
    path.write_bytes(gzip.compress(seed, mtime=0) if path.suffix == ".gz" else seed)
    kind.load(path)  # the seed is good, and all that is imported for it is here now
    rng = random.Random(f"{kind.name} 1")
    refused = 0
    for case in range(kind.num_cases):
        path.write_bytes(rng.choice(kind.mutations)(rng, seed))
        began_s = time.process_time()
        with listening() as heard:
            refused += is_refused(kind, path, case)
        took_s = time.process_time() - began_s
        assert [] == heard, f"case {case}"
        assert took_s < SLOWEST_S, f"case {case} of {kind.name} took {took_s:.1f} s"
    assert [path] == list(folder.iterdir())
    assert refused > kind.num_cases / 4  # the mutations reach what is checked


def is_refused(kind: Kind, path: Path, case: int) -> bool:
    try:
        kind.load(path)
    except LayerwiseError as error:
        return bool(f"{error}")
    except Exception as error:
        raise AssertionError(f"case {case} of {kind.name}: {error!r:.500}") from error
    return False


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("what", ["folder", "nothing", "loop", "pipe", "device", "secret"])
def test_what_is_no_file_is_refused(kind: Kind, what: str, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    match what:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "secret":
            path.write_bytes(b"x")
            path.chmod(0)
            if os.access(path, os.R_OK):
                pytest.skip("root reads everything")
        case _:
            pass
    if what in ("nothing", "loop") and kind.load is read_prediction:
        pytest.skip("nothing was committed: that is an answer")
    if what == "nothing" and kind.load is load_journal:
        pytest.skip("no rank has measured: that is an answer")
    with pytest.raises(LayerwiseError, match=kind.name):
        kind.load(path)
