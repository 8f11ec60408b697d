"""Arrays as users have them, as float64: what NumPy would cast in silence, or refuse in its own words, is named."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import first_line


def as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """The value as an array of whatever type it has.

    Raises
    ------
    ValueError
        If it is none (ragged lists, sparse tensors, tensors that require a gradient), or entries are masked.
    """
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries; expected an array without: leave them out, or fill them.")
    try:
        return np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name} is no array ({first_line(error)}); expected one of real numbers.") from error


def real_array(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """The value as an array of float64.

    Raises
    ------
    ValueError
        As `as_array`, and if it holds anything but real numbers: complex ones, text, dates.

    Examples
    --------
    >>> real_array("weight", [[1, 2]])
    array([[1., 2.]])
    >>> real_array("weight", [1j])
    Traceback (most recent call last):
    ...
    ValueError: weight holds complex128; expected real numbers.
    """
    array = as_array(name, value)
    if np.can_cast(array.dtype, np.float64, "same_kind"):
        return array.astype(np.float64, copy=False)
    try:
        if array.dtype == object:  # numbers of another library, which convert themselves
            return array.astype(np.float64)
    except Exception as error:
        raise ValueError(f"{name} holds no numbers ({first_line(error)}); expected real ones.") from error
    raise ValueError(f"{name} holds {array.dtype}; expected real numbers.")
