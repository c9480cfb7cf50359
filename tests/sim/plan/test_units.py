from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.units import parse_quantity, parse_real, parse_whole

SCALES = {
    "_s": {"ns": 10**-9, "us": 10**-6, "ms": 10**-3, "s": 1, "min": 60, "h": 3600},
    "_bytes": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "_bytes_per_s": {"GB/s": 1e9, "TB/s": 1e12, "Gb/s": 1e9 / 8, "Gbit/s": 1e9 / 8, "GiB/s": 2**30},
    "_flops_per_s": {"GFLOP/s": 1e9, "TFLOP/s": 1e12, "TFLOPS": 1e12, "PFLOP/s": 1e15},
}
KEY_AND_UNIT = st.sampled_from([(key, unit) for key, units in SCALES.items() for unit in units])


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("x_s", "20ms", 0.02),
        ("x_s", "8.5us", 8.5e-6),
        ("x_s", "8.5μs", 8.5e-6),
        ("link.bytes_per_s", "450GB/s", 450e9),
        ("link.bytes_per_s", "400Gb/s", 50e9),
        ("x_bytes", "11GiB", 11 * 2**30),
        ("x_bytes", " 50 MB ", 50e6),
        ("peak_flops_per_s", "989TFLOP/s", 989e12),
        ("x_bytes", "1e9", 1e9),
        ("num_sms", "132", 132.0),
        ("x_bytes", "32_768_000", 32_768_000.0),
        ("x_bytes", "32,768,000", 32_768_000.0),
        ("x_bytes", "1,500.5 MB", 1_500_500_000.0),
        ("x_s", "-.5", -0.5),
    ],
)
def test_what_people_write_is_read(key: str, text: str, expected: float) -> None:
    assert expected == parse_real(key, text)


@given(st.floats(1e-9, 1e9), KEY_AND_UNIT)
def test_a_unit_multiplies(number: float, written: tuple[str, str]) -> None:
    key, unit = written

    assert parse_real(key, f"{number!r} {unit}") == pytest.approx(
        number * SCALES[key][unit], rel=1e-15
    )


@given(st.integers(-(2**62), 2**62))
def test_integers_keep_every_digit(number: int) -> None:
    assert number == parse_whole("batch_size", str(number))


@given(st.floats(-1e30, 1e30).filter(lambda number: not 0 < abs(number) < 1e-40))
def test_a_plain_number_is_itself(number: float) -> None:
    assert number == parse_real("x_bytes", repr(number))


@given(KEY_AND_UNIT, KEY_AND_UNIT)
def test_a_unit_of_another_kind_is_refused(
    written: tuple[str, str], other: tuple[str, str]
) -> None:
    key, unit = written[0], other[1]
    if unit in SCALES[key]:
        assert 0 < parse_quantity(key, f"1{unit}")
        return
    with pytest.raises(SpecError, match=f"has the unit '{unit}'"):
        parse_quantity(key, f"1{unit}")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (
            "l2_bytes",
            "many",
            "l2_bytes='many' is not a number; write it like 11GiB, or plain in bytes",
        ),
        ("l2_bytes", "nan", "l2_bytes='nan' is not a number"),
        ("l2_bytes", "", "l2_bytes='' is not a number"),
        ("x_s", "1e999999999", "x_s='1e999999999' is beyond any machine; use one nearer to 1"),
        ("x_bytes", "9" * 31, f"x_bytes='{'9' * 31}' is beyond any machine"),
        (
            "batch_size",
            "4GB",
            "batch_size='4GB' has the unit 'GB' and batch_size has no unit; leave it out",
        ),
        ("x_s", "20 m", "x_s='20 m' has the unit 'm' and x_s is in seconds; write it like 20ms"),
    ],
)
def test_what_is_no_quantity_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_quantity(key, text)

    assert str(error.value).startswith(message)


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(SpecError, match="l2_bytes='0.3B' is not a whole number; use 0"):
        parse_whole("l2_bytes", "0.3B")


def test_quantities_are_exact() -> None:
    assert Fraction(1, 10_000) == parse_quantity("x_s", "0.1ms")
