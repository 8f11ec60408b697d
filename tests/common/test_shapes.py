"""Shapes: accepted values, and the errors for others."""

from __future__ import annotations

from typing import Any

import pytest

from nearest_etf.common.seals import Damage
from nearest_etf.common.shapes import check_shape


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (3, int),
        (3, float),
        (float("nan"), float),
        (None, (str, None)),
        ("x", (str, None)),
        (True, object),
        ((1, 2.5), [float]),
        ([], [int]),
        ({"a": 1, "b": "x", "c": None}, {"a": int, "b?": str}),
        ({"a": 1}, {"a": int, "b?": str}),
        ({"a": 1, "b": 2.5}, {"a": int, str: float}),
        ({"a": [{"b": 1}]}, {"a": [{"b": int}]}),
    ],
)
def test_values_of_the_shape_are_accepted(value: Any, shape: Any) -> None:
    check_shape(value, shape)


@pytest.mark.parametrize(
    ("value", "shape", "complaint"),
    [
        (True, int, "it is True, expected an integer"),
        (2**63, int, "it is 9223372036854775808, expected an integer"),
        (10**400, float, "it is 1000.*…, expected a number"),
        pytest.param(10**5000, float, "it is a long int, expected a number", id="long"),
        ("3", float, "it is '3', expected a number"),
        ([], (str, None), "it is list of 0, expected str or nothing"),
        ("ab", [str], "it is 'ab', expected a list"),
        ([1, None], [int], r"\[1\] is None, expected an integer"),
        ([], {"a": int}, "it is list of 0, expected named entries"),
        ({}, {"a": int}, "a is missing"),
        ({"a": {"b": []}}, {"a": {"b": str}}, r"a\.b is list of 0, expected str"),
        ({"a": 1, "b": "x"}, {"a": int, str: float}, "b is 'x', expected a number"),
        ({1: 2}, {str: int}, "it is 1, expected a name"),
        ({"x" * 1000: 2}, {str: str}, f"{'x' * 200} is 2, expected str"),
    ],
)
def test_values_of_another_shape_are_named(value: Any, shape: Any, complaint: str) -> None:
    with pytest.raises(Damage, match=f"^{complaint}$"):
        check_shape(value, shape)
