"""The names of the package: lazy, complete, none of them a module, and a remedy for a missing dependency."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import nearest_etf.export as export


def test_every_name_resolves_and_is_listed() -> None:
    assert dir(export) == sorted(export.__all__)
    for name in export.__all__:
        assert getattr(export, name).__name__ == name


def test_no_name_is_also_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(export.__path__)}
    assert not modules & set(export.__all__)
    assert "export" not in modules


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match=r"'nearest_etf\.export' has no attribute 'export_onxx'"):
        _ = export.export_onxx  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("missing", "name", "message"),
    [
        ("onnxruntime", "OnnxClassifier", "OnnxClassifier needs onnxruntime: pip install 'nearest-etf[deploy]'"),
        ("onnx", "export_onnx", "export_onnx needs onnx: pip install 'nearest-etf[export]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(missing: str, name: str, message: str) -> None:
    script = f"""
import sys
sys.modules[{missing!r}] = None
from nearest_etf.export import CheckError
try:
    from nearest_etf.export import {name}
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == message
