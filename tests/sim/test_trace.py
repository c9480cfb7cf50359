from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.plan.errors import FileFormatError
from layerwise.sim.trace import COLUMNS, Row, Trace, as_data, read_trace, write_trace
from tests.sim.scenes import TINY

ROW = Row(
    repeat=0,
    step=1,
    rank=2,
    op="L00.attn.qkv@m0",
    kind="Matmul",
    stream="compute",
    ready_s=1e-6,
    start_s=2e-6,
    end_s=5e-6,
    bound="hbm",
)
TRACE = Trace(
    source="measured",
    name="stage",
    scenario={"name": "x"},
    kernel_set="abc",
    rows=(ROW, replace(ROW, op="L00.attn.out@m0", replaced=True)),
    untraced_step_s=(1e-3, 2e-3),
    traced_step_s=(3e-3,),
    timing="cupti",
    measured={"hbm_bytes_per_s": 3e12},
    environment={"gpu": "H100"},
    purpose="validation",
)


def changed(folder: Path, change: Callable[[list[str]], list[str]]) -> Path:
    """A written trace whose lines went through `change`."""
    path = folder / "t.jsonl"
    write_trace(TRACE, path)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    return path


def with_row(folder: Path, **values: Any) -> Path:
    """A written trace whose first row (line 2) has other values."""
    columns = [values.get(name, getattr(ROW, name)) for name in COLUMNS]
    return changed(folder, lambda lines: [lines[0], json.dumps(columns), *lines[2:]])


def with_header(folder: Path, **values: Any) -> Path:
    return changed(folder, lambda lines: [json.dumps(json.loads(lines[0]) | values), *lines[1:]])


def refusal(path: Path) -> str:
    with pytest.raises(FileFormatError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_trace_survives_its_file(tmp_path: Path, name: str) -> None:
    write_trace(TRACE, tmp_path / name)

    assert TRACE == read_trace(tmp_path / name)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=5))
def test_times_survive_to_a_tenth_of_a_nanosecond(
    tmp_path_factory: pytest.TempPathFactory, times: list[tuple[int, int]]
) -> None:
    rows = tuple(
        replace(ROW, start_s=start * 1e-10, end_s=(start + length) * 1e-10)
        for start, length in times
    )
    path = tmp_path_factory.mktemp("trace") / "t.gz"
    write_trace(replace(TRACE, rows=rows), path)

    assert [round(row.end_s, 10) for row in rows] == [row.end_s for row in read_trace(path).rows]


def test_compressed_file_is_compressed(tmp_path: Path) -> None:
    write_trace(TRACE, tmp_path / "t.gz")

    assert b'{"format"' == gzip.decompress((tmp_path / "t.gz").read_bytes())[:9]


def test_writing_leaves_no_other_file(tmp_path: Path) -> None:
    write_trace(TRACE, tmp_path / "new" / "t.jsonl")

    assert ["t.jsonl"] == [path.name for path in (tmp_path / "new").iterdir()]


def test_key_is_what_rows_join_on() -> None:
    assert (0, 1, 2, "L00.attn.qkv@m0") == ROW.key


def test_duration_is_from_first_kernel_to_last() -> None:
    assert 3e-6 == pytest.approx(ROW.duration_s)


def test_spec_becomes_plain_data() -> None:
    assert 64 == as_data(TINY)["hidden_size"]


def test_file_cut_between_rows_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda lines: lines[:-1])

    assert refusal(path).startswith("1 rows where the header promises 2; the file was cut short")


def test_file_cut_inside_a_row_is_refused_with_its_line(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda lines: [*lines[:-1], lines[-1][:20]])

    assert refusal(path).startswith("line 3 is not a row")


def test_compressed_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    write_trace(TRACE, path)
    path.write_bytes(path.read_bytes()[:-20])

    assert "cannot be read as a trace" in refusal(path)


def test_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    write_trace(TRACE, path)
    data = bytearray(path.read_bytes())
    data[12:40] = bytes(255 - byte for byte in data[12:40])
    path.write_bytes(bytes(data))

    assert "cannot be read as a trace" in refusal(path)


def test_plain_text_called_gz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    path.write_text("not compressed")

    assert "cannot be read as a trace" in refusal(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read as a trace" in refusal(tmp_path / "none.jsonl")


def test_other_version_is_refused(tmp_path: Path) -> None:
    assert refusal(with_header(tmp_path, version=99)).startswith(
        "trace version 99, this program reads version 1; write it again"
    )


def test_other_format_is_refused(tmp_path: Path) -> None:
    assert "is this a trace?" in refusal(with_header(tmp_path, format="chrome"))


@pytest.mark.parametrize("line", ["", "{", "[]", "7"])
def test_file_without_a_header_is_refused(tmp_path: Path, line: str) -> None:
    assert "line 1" in refusal(changed(tmp_path, lambda lines: [line]))


def test_header_without_its_fields_is_refused(tmp_path: Path) -> None:
    def without_name(lines: list[str]) -> list[str]:
        header = json.loads(lines[0])
        del header["name"]
        return [json.dumps(header), *lines[1:]]

    assert "the header lacks ['name']" == refusal(changed(tmp_path, without_name))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"end_s": float("nan")}, "has a time that is not finite"),
        ({"start_s": float("inf")}, "has a time that is not finite"),
        ({"ready_s": float("nan")}, "has a time that is not finite"),
        ({"end_s": 1e-6}, "ends at 1e-06 before it starts at 2e-06"),
        ({"start_s": "soon"}, "is not a float"),
    ],
)
def test_row_with_impossible_times_is_refused_with_its_line(
    tmp_path: Path, values: dict[str, Any], problem: str
) -> None:
    message = refusal(with_row(tmp_path, **values))

    assert message.startswith("line 2 is not a row")
    assert problem in message


def test_row_with_too_few_columns_is_refused_with_its_line(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda lines: [lines[0], "[0, 1]", lines[2]])

    assert refusal(path).startswith("line 2 is not a row")


def test_keys_of_a_newer_header_are_ignored(tmp_path: Path) -> None:
    assert TRACE == read_trace(with_header(tmp_path, comment="from later"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ["x"]),
        ("untraced_step_s", 5),
        ("untraced_step_s", [0.0]),
        ("measured", []),
        ("environment", "x"),
        ("source", "guessed"),
        ("purpose", ["x"]),
    ],
)
def test_header_of_the_wrong_kind_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(Trace(source="measured", name="t", scenario={}, kernel_set="k"), path)
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, key: value}) + "\n")

    with pytest.raises(FileFormatError, match="line 1"):
        read_trace(path)


@pytest.mark.parametrize(
    ("key", "value"), [("step", "zz"), ("step", None), ("replaced", "no"), ("kind", None)]
)
def test_row_of_the_wrong_kind_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "t.jsonl"
    row = Row(
        repeat=0,
        step=0,
        rank=0,
        op="a",
        kind="Norm",
        stream="compute",
        ready_s=0.0,
        start_s=0.0,
        end_s=1.0,
    )
    trace = Trace(source="measured", name="t", scenario={}, kernel_set="k", rows=(row,))
    write_trace(trace, path)
    header, line = path.read_text().splitlines()
    columns, values = json.loads(header)["columns"], json.loads(line)
    values[columns.index(key)] = value
    path.write_text(header + "\n" + json.dumps(values) + "\n")

    with pytest.raises(FileFormatError, match="line 2 is not a row"):
        read_trace(path)


def test_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is a folder; name a file"):
        write_trace(Trace(source="measured", name="t", scenario={}, kernel_set="k"), tmp_path)


@pytest.mark.parametrize(("step_s", "regime"), [(4e-3, "burst"), (6e-3, "sustained")])
def test_a_trace_from_before_regimes_is_sustained_where_it_lasted(
    tmp_path: Path, step_s: float, regime: str
) -> None:
    path = tmp_path / "old.jsonl"
    run = {"launch": "graph", "steps_per_graph": 2}
    old = Trace(
        source="measured",
        name="old",
        scenario={"run": run},
        kernel_set="k",
        untraced_step_s=(step_s,) * 10,
    )
    write_trace(old, path)

    assert read_trace(path).scenario["run"] == run | {"regime": regime}


def test_a_trace_that_says_its_regime_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    run = {"launch": "graph", "regime": "burst"}
    new = Trace(
        source="measured", name="n", scenario={"run": run}, kernel_set="k", untraced_step_s=(9.0,)
    )
    write_trace(new, path)

    assert read_trace(path).scenario["run"] == run
