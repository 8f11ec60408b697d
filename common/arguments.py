"""Validation of numeric and boolean arguments, for the public functions of every room."""

from __future__ import annotations

import math
import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """The value as an int of at least `least`; integers of any library are accepted, bools and floats are refused.

    Raises
    ------
    ValueError
        If the value is not an integer, is less than `least`, or has more than 64 bits.

    Examples
    --------
    >>> whole_number("num_classes", 3, least=2)
    3
    >>> whole_number("num_classes", 3.5, least=2)
    Traceback (most recent call last):
    ...
    ValueError: num_classes = 3.5; expected an integer of at least 2.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} = {value!r}; expected an integer of at least {least}.")
    if number >= 2**63:
        raise ValueError(f"{name} = {number}; expected an integer of at most 2^63 - 1.")
    return number


def real_number(name: str, value: Any, *, positive: bool = False) -> float:
    """The value as a finite float: non-negative, or with `positive` above zero.

    Raises
    ------
    ValueError
        If the value is not a number, or is out of range.

    Examples
    --------
    >>> real_number("delta", 1e-3), real_number("delta", 0)
    (0.001, 0.0)
    >>> real_number("delta", float("inf"))
    Traceback (most recent call last):
    ...
    ValueError: delta = inf; expected a finite number that is not negative.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor with several entries
        number = math.nan
    if not (math.isfinite(number) and number >= 0 and not (positive and number == 0)):
        kind = "positive finite number" if positive else "finite number that is not negative"
        raise ValueError(f"{name} = {value!r}; expected a {kind}.")
    return number


def switch(name: str, value: Any) -> bool:
    """The value, if it is True or False; the truth value of any other object is not used silently.

    >>> switch("gradient", "no")
    Traceback (most recent call last):
    ...
    ValueError: gradient = 'no'; expected True or False.
    """
    if value is not True and value is not False:
        raise ValueError(f"{name} = {value!r}; expected True or False.")
    return bool(value)
