"""Validation of the tensor arguments of public functions: layout, dtype, device, and finite entries on the CPU.

All checks but `check_finite` read only attributes, so that none synchronises and compilers see constants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PLURAL = ("features", "labels", "rows", "counts", "training_features")


def check_dense(name: str, value: Any, expected: str) -> None:
    """Refuse values that are not tensors of torch, and tensors that are sparse or nested.

    Raises
    ------
    ValueError
        It names what was found, what was expected, and the remedy.
    """
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} {_is(name)} a {type(value).__name__}; expected {expected}. Convert by torch.as_tensor."
        )
    if value.is_nested:
        raise ValueError(f"{name} {_is(name)} a nested tensor; expected {expected}: one tensor, without ragged rows.")
    if value.layout is not torch.strided:
        raise ValueError(f"{name} {_is(name)} a {value.layout} tensor; expected {expected}. Convert by to_dense().")


def check_floats(name: str, value: Any, expected: str, *, beside: Tensor | None = None, values: bool = False) -> None:
    """Refuse all but a dense tensor of float16, bfloat16, float32 or float64; the caller checks its shape.

    Parameters
    ----------
    name, expected : str
        For the message, as in "a floating-point matrix (d, K)".
    beside : Tensor, optional
        Another argument, which must be on the same device.
    values : bool
        Whether the caller reads the entries on the host; then the meta device is refused.

    Raises
    ------
    ValueError
        It names what was found, what was expected, and the remedy.

    Examples
    --------
    >>> check_floats("weight", torch.eye(3, dtype=torch.int64), "a floating-point matrix")
    Traceback (most recent call last):
    ...
    ValueError: weight is torch.int64 of shape (3, 3); expected a floating-point matrix. Convert by weight.float().
    """
    check_dense(name, value, expected)
    if value.dtype not in FLOATS:
        raise ValueError(
            f"{name} {_is(name)} {value.dtype} of shape {tuple(value.shape)}; expected {expected}. "
            f"{_conversion(name, value)}"
        )
    if values and value.is_meta:
        raise ValueError(f"{name} {_is(name)} on the meta device, without values; expected {expected} with values.")
    if beside is not None:
        check_device(name, value, beside)


def check_device(name: str, value: Tensor, beside: Tensor) -> None:
    """Refuse a tensor on another device than the one beside it.

    Raises
    ------
    ValueError
        It names both devices and the remedy.
    """
    if value.device != beside.device:
        raise ValueError(
            f"{name} {_is(name)} on {value.device}; expected {beside.device}, as the tensors beside it: move it by "
            f"{name}.to({str(beside.device)!r})."
        )


def check_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinite entries, if they can be read without synchronising (see `sees_values`).

    Raises
    ------
    ValueError
        If there are any.
    """
    if sees_values(value) and not value.isfinite().all():
        raise ValueError(f"{name} {'contain' if name in PLURAL else 'contains'} NaN or infinite entries.")


def sees_values(value: Tensor) -> bool:
    """Whether the entries can be read without synchronising: on the CPU, outside of compilers and `torch.func.vmap`."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not is_mapped(value)


def is_mapped(A: Tensor) -> bool:
    """Whether A is a batch under `torch.func.vmap`, where its entries cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(A):
        if functorch.is_batchedtensor(A):
            return True
        A = functorch.get_unwrapped(A)
    return False


def _is(name: str) -> str:
    return "are" if name in PLURAL else "is"


def _conversion(name: str, value: Tensor) -> str:
    if value.is_quantized:
        return f"Convert by {name}.dequantize()."
    if value.is_complex():
        return f"Take {name}.real, or its absolute values."
    return f"Convert by {name}.float()."
