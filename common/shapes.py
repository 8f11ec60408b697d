"""Validation of values from files by shapes: types, lists and mappings, nested like the value."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import LONGEST_NAME, shown
from .seals import Damage

LARGEST_INT = 2**63


def check_shape(value: Any, shape: Any, where: str = "") -> None:
    """Raise an error unless a value has the given shape.

    Parameters
    ----------
    value
        The contents of JSON, TOML or a checkpoint.
    shape
        One of:

        - a type; `float` accepts any number, `int` an integer of 64 bits;
        - None;
        - a tuple of these, one of which the value must match;
        - [shape]: a list or tuple of values of this shape;
        - {"name": shape, "other?": shape, str: shape}: a mapping with the entry "name", the optional entry "other", and
          any other entries. Their values must have the shape of the key `str`, if there is one.
    where : str
        Name of the value in the error message.

    Raises
    ------
    Damage
        If the value has another shape.

    Examples
    --------
    >>> check_shape({"epoch": 3, "more": "x"}, {"epoch": int, "loss?": float})
    >>> check_shape({"names": ["cat", 7]}, {"names": [str]})
    Traceback (most recent call last):
    ...
    nearest_etf.common.seals.Damage: names[1] is 7, expected str
    """
    if isinstance(shape, dict):
        _expect(isinstance(value, Mapping), value, "named entries", where)
        named = {name.removesuffix("?"): entry_shape for name, entry_shape in shape.items() if name is not str}
        for name in named.keys() & shape.keys():
            if name not in value:
                raise Damage(f"{_under(where, name)} is missing")
        for name, entry in value.items():
            _expect(isinstance(name, str), name, "a name", where)
            check_shape(entry, named.get(name, shape.get(str, object)), _under(where, name))
    elif isinstance(shape, list):
        _expect(isinstance(value, Sequence) and not isinstance(value, str | bytes), value, "a list", where)
        for position, entry in enumerate(value):
            check_shape(entry, shape[0], f"{where}[{position}]")
    elif isinstance(shape, tuple):
        names = [_name(kind) for kind in shape]
        _expect(any(_is(value, kind) for kind in shape), value, " or ".join(names), where)
    else:
        _expect(_is(value, shape), value, _name(shape), where)


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        is_int = type(value) is int and abs(value) <= sys.float_info.max
        return isinstance(value, float) or is_int
    if kind is int:
        return type(value) is int and abs(value) < LARGEST_INT
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    return {None: "nothing", float: "a number", int: "an integer"}.get(kind) or str(kind.__name__)


def _under(where: str, name: str) -> str:
    return f"{where}.{name[:LONGEST_NAME]}" if where else name[:LONGEST_NAME]


def _expect(fits: bool, value: Any, expected: str, where: str) -> None:
    if not fits:
        found = f"{type(value).__name__} of {len(value)}" if isinstance(value, list | dict | tuple) else shown(value)
        raise Damage(f"{where or 'it'} is {found}, expected {expected}")
