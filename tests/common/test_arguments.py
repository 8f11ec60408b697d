"""Numbers and switches: accepted values, and the errors for others."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from nearest_etf.common.arguments import real_number, switch, whole_number


def test_integers_of_any_library_are_whole_numbers() -> None:
    assert [whole_number("n", n) for n in (3, np.int64(3), np.uint8(3), torch.tensor(3))] == [3, 3, 3, 3]


@pytest.mark.parametrize("value", [True, False, 2.0, "3", None, [3], np.float64(3), np.array([1, 2]), 1, 1j])
def test_other_values_are_no_whole_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^n = .*; expected an integer of at least 2\.$"):
        whole_number("n", value, 2)


def test_whole_numbers_have_64_bits() -> None:
    with pytest.raises(ValueError, match=r"at most 2\^63 - 1"):
        whole_number("n", 2**63)


def test_numbers_of_any_library_are_real() -> None:
    given = (0.5, np.float32(0.5), torch.tensor(0.5), Decimal("0.5"), np.array([0.5])[0])
    assert [real_number("delta", x) for x in given] == [0.5] * 5


@pytest.mark.parametrize(
    "value", [-1.0, float("nan"), float("inf"), 10**400, "0.5", b"1", True, None, [0.5], torch.ones(2), np.ones(2), 1j]
)
def test_other_values_are_no_real_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)^delta = .*; expected a finite number that is not negative\.$"):
        real_number("delta", value)


def test_zero_is_not_positive() -> None:
    assert real_number("delta", 0) == 0.0
    with pytest.raises(ValueError, match="temperature = 0; expected a positive finite number"):
        real_number("temperature", 0, positive=True)


@pytest.mark.parametrize("value", ["no", 0, 1, None, torch.tensor(True), np.bool_(True)])
def test_a_switch_is_true_or_false(value: Any) -> None:
    assert switch("gradient", True)
    assert not switch("gradient", False)
    with pytest.raises(ValueError, match=r"gradient = .*; expected True or False"):
        switch("gradient", value)
