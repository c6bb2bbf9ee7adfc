"""Ranges of numbers: what lies in them, what is said of what does not, in fields and in flags."""

import argparse
from dataclasses import dataclass
from typing import Annotated

import pytest

from electra_flax.config.ranges import Range
from electra_flax.errors import UserError, check_numbers
from electra_flax.runtime.flags import in_range

OUTSIDE_ANY = (float("nan"), float("inf"), float("-inf"), 10**400, -(10**30), None, "3")


@dataclass(frozen=True)
class Sizes:
    count: Annotated[int, Range(1, 2**31 - 1)] = 1
    share: Annotated[float, Range(0, 1, "[)")] = 0.0
    rate: Annotated[float, Range(0, 10, "(]")] = 1.0
    axis: Annotated[int, Range(1, 65_536, also=-1)] = -1
    name: str = "any"

    def __post_init__(self) -> None:
        check_numbers(self, "sizes")


@pytest.mark.parametrize(
    ("field", "inside", "outside", "expected"),
    [
        ("count", (1, 2**31 - 1), (0, -1, 2**31, 2**63), "1 to 2,147,483,647"),
        ("share", (0.0, 0.999), (1.0, -1e-9), "at least 0 and less than 1"),
        ("rate", (1e-9, 10), (0, 10.1), "more than 0 and at most 10"),
        ("axis", (-1, 1, 65_536), (0, -2), "-1, or 1 to 65,536"),
    ],
)
def test_a_field_names_itself_its_value_and_its_range(field, inside, outside, expected):
    for value in inside:
        Sizes(**{field: value})
    for value in (*outside, *OUTSIDE_ANY):
        with pytest.raises(UserError, match=rf"^sizes\.{field}=.*: expected ") as error:
            Sizes(**{field: value})
        assert str(error.value).endswith(f": expected {expected}") and len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("kind", "inside", "outside", "expected"),
    [
        (int, ("1", "9999"), ("0", "-1", "1e3", "2.5", "nan", "", "9" * 5000, "10000"), "whole number, 1 to 9,999"),
        (float, ("1", "2.5"), ("0", "nan", "inf", "-1", "1e9", "x"), "number, 1 to 9,999"),
    ],
)
def test_a_flag_says_what_it_expects(kind, inside, outside, expected):
    parse = in_range(kind, Range(1, 9999))
    assert [parse(text) for text in inside] == [kind(text) for text in inside]
    for text in outside:
        with pytest.raises(argparse.ArgumentTypeError, match=expected) as error:
            parse(text)
        assert len(str(error.value)) < 150
