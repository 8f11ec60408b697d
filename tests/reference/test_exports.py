"""Exported names: the list, the lazy table and the typing imports agree; modules load on first use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nearest_etf.reference as reference


def test_list_table_and_imports_agree():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {name.name: node.module for node in block.body for name in node.names}
    assert imports == reference._MODULES
    assert sorted(imports) == sorted(reference.__all__) == sorted(dir(reference))
    for name, module in imports.items():
        assert getattr(reference, name).__module__ == f"nearest_etf.reference.{module}"


def test_no_exported_name_is_a_module():
    modules = {path.stem for path in Path(reference.__file__).parent.glob("*.py")}
    assert not modules & set(reference.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"'nearest_etf\.reference' has no attribute 'nearest'"):
        _ = reference.nearest
    with pytest.raises(ImportError):
        exec("from nearest_etf.reference import simplex_et")


def loaded_by(program: str) -> set[str]:
    """The packages that a program loads in a fresh interpreter."""
    program += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_the_package_and_the_help_of_its_command_load_no_numpy():
    heavy = {"numpy", "scipy", "torch", "matplotlib"}
    assert not loaded_by("import nearest_etf.reference") & heavy
    for flag in ("--help", "--version"):
        program = f"""
from nearest_etf.reference.etf_verify import main
try:
    main(["{flag}"])
except SystemExit:
    pass
"""
        assert not loaded_by(program) & heavy


def test_the_room_needs_only_numpy_and_scipy():
    loaded = loaded_by("from nearest_etf.reference import *\nimport nearest_etf.reference.verify")
    assert {"numpy", "scipy"} <= loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "matplotlib", "autograd", "sklearn", "pymanopt"}
