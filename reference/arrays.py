"""Conversion of array-like arguments to arrays, without silent casts, and with errors that name the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import first_line


def as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """The value as an array, with its type unchanged.

    Raises
    ------
    ValueError
        If the value is not array-like (ragged lists, sparse tensors, tensors that require a gradient), or has masked
        entries.
    """
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries; expected an array without them: remove or fill them.")
    try:
        return np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name} is not an array ({first_line(error)}); expected real numbers.") from error


def real_array(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """The value as an array of float64.

    Raises
    ------
    ValueError
        As `as_array`, and if the entries are not real numbers but, for example, complex numbers, text or dates.

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
        if array.dtype == object:  # numbers of another library, with a conversion of their own
            return array.astype(np.float64)
    except Exception as error:
        raise ValueError(f"{name} does not hold numbers ({first_line(error)}); expected real numbers.") from error
    raise ValueError(f"{name} holds {array.dtype}; expected real numbers.")
