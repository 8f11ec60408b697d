"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest


def modules() -> list[str]:
    names = []
    for room in ("reference", "torchport", "export"):
        package = importlib.import_module(f"nearest_etf.{room}")
        names += [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))]
    return names


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
