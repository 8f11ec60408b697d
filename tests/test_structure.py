"""The structure of the house: no import circles, one-way imports between rooms, packages that only export, lengths."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("common", "reference", "torchport", "export")
LONGEST_FILE = 400
LAZY = ("nearest_etf", "nearest_etf.reference", "nearest_etf.torchport", "nearest_etf.export")
COMMANDS = {
    "etf-verify": "nearest_etf.reference.etf_verify",
    "etf-train": "nearest_etf.torchport.training.etf_train",
    "etf-measure": "nearest_etf.torchport.training.etf_measure",
    "etf-report": "nearest_etf.torchport.training.etf_report",
    "etf-export": "nearest_etf.export.etf_export",
    "etf-predict": "nearest_etf.export.etf_predict",
}


def sources() -> dict[str, Path]:
    """Module name to file, of the whole package."""
    modules = {"nearest_etf": ROOT / "root" / "__init__.py"}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(("nearest_etf", *parts)).removesuffix(".__init__")] = path
    return modules


def imports(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """Modules of this package that a module imports: at load time, in functions, or for type checkers."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            for alias in node.names:
                if f"{target}.{alias.name}" in known:
                    yield f"{target}.{alias.name}"
                elif target in known:
                    yield target


SOURCES = sources()
GRAPH = {name: sorted(set(imports(name, path, set(SOURCES))) - {name}) for name, path in SOURCES.items()}


def test_there_are_no_import_circles() -> None:
    reached: dict[str, set[str]] = {}
    for start in GRAPH:
        seen, ahead = set(), list(GRAPH[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += GRAPH[module]
        reached[start] = seen
    assert [name for name in GRAPH if name in reached[name]] == []


def room(module: str) -> str:
    for place in ("torchport.training", "torchport.integrations", *ROOMS):
        if f"{module}.".startswith(f"nearest_etf.{place}."):
            return place
    return "root"


ALLOWED = {
    "root": {"torchport"},  # lazily
    "common": set(),
    "reference": {"common"},
    "torchport": {"common", "reference"},
    "torchport.training": {"common", "reference", "torchport"},
    "torchport.integrations": {"common", "reference", "torchport", "torchport.training"},
    "export": {"common", "reference", "torchport", "torchport.training"},
}


def test_arrows_between_rooms_point_one_way() -> None:
    wrong = [
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if room(target) not in ALLOWED[room(module)] | {room(module), "root"}  # the root, for the version
    ]
    assert wrong == []


def test_files_stay_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES.values()
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize("name", [name for name, path in SOURCES.items() if path.name == "__init__.py"])
def test_packages_only_export(name: str) -> None:
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in tree.body[1:]:
        if isinstance(node, ast.If):
            functions = [item.name for item in node.orelse if isinstance(item, ast.FunctionDef)]
            assert functions in (["__getattr__"], ["__getattr__", "__dir__"])
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)


@pytest.mark.parametrize("name", LAZY)
def test_lazy_exports_agree_with_those_for_type_checkers(name: str) -> None:
    package = import_module(name)
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    always = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen | always - {"TYPE_CHECKING", "annotations"}) == sorted(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for exported in package.__all__:
        assert getattr(package, exported) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_the_root_exports_the_names_of_the_layer() -> None:
    assert import_module("nearest_etf").__all__ == import_module("nearest_etf.torchport").__all__


def test_no_exported_name_is_also_a_module() -> None:
    for name in LAZY[1:]:
        children = {module.removeprefix(f"{name}.") for module in SOURCES if module.startswith(f"{name}.")}
        assert set(import_module(name).__all__) & children == set()


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running this code."""
    report = "\nimport sys; print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("nearest_etf", {"numpy", "torch"}),
        ("nearest_etf.reference", {"numpy", "torch"}),
        ("nearest_etf.reference.procrustes", {"torch"}),
        ("nearest_etf.torchport", {"numpy", "torch"}),
        ("nearest_etf.torchport.training.run.reading", {"torch"}),
        ("nearest_etf.torchport.training.run.folder", {"torch"}),
        ("nearest_etf.export", {"numpy", "torch", "onnx", "onnxruntime"}),
        ("nearest_etf.export.predict", {"torch", "scipy", "onnx"}),
        ("nearest_etf.common.photo", {"torch", "scipy"}),
    ],
)
def test_light_modules_load_no_heavy_packages(module: str, heavy: set[str]) -> None:
    assert loaded_after(f"import {module}") & heavy == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_load_no_heavy_packages(command: str, arguments: list[str]) -> None:
    code = (
        f"from {COMMANDS[command]} import main\nimport contextlib, io\n"
        f"with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        f"    main({arguments})\nassert out.getvalue().startswith(('usage: {command}', '{command} '))"
    )
    assert loaded_after(code) & {"numpy", "scipy", "torch", "onnx", "onnxruntime", "matplotlib", "PIL"} == set()


def test_every_command_is_installed_under_its_name() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for command, module in COMMANDS.items():
        assert f'{command} = "{module}:main"' in text
