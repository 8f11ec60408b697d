"""The pages of the site: their Python runs from top to bottom, their commands and options exist, no name is missing."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
NOT_RUN = re.compile(r"\*Not run by the tests: needs [^*]+\.\*\n")  # a line that readers see, too
BLOCK = re.compile(rf"({NOT_RUN.pattern})?^```([^\n`]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = {
    "etf-verify": "reference.etf_verify",
    "etf-train": "torchport.training.etf_train",
    "etf-measure": "torchport.training.etf_measure",
    "etf-report": "torchport.training.etf_report",
    "etf-export": "export.etf_export",
    "etf-predict": "export.etf_predict",
}
SECOND = {"etf-train": "sweep", "etf-export": "check"}  # words with options of their own
ROOMS = {"torch.md": "torchport", "numpy.md": "reference", "export.md": "export"}


def blocks(page: str, *languages: str) -> list[tuple[int, str]]:
    """Line before the code, and the code, of the blocks in these languages that are to be run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (text[: match.start(3)].count("\n"), match[3])
        for match in BLOCK.finditer(text)
        if match[2] in languages and match[1] is None
    ]


def options_of(command: str) -> set[str]:
    """All options in a command's help, those of its sweep or check included."""
    main = importlib.import_module(f"nearest_etf.{COMMANDS[command]}").main
    shown = io.StringIO()
    for words in ([], [SECOND[command]] if command in SECOND else []):
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    return set(re.findall(r"--[a-z][\w-]*", shown.getvalue()))


@pytest.mark.parametrize("page", [name for name in NAMES if blocks(name, "python")])
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("lightning" in code for _, code in blocks(page, "python")):
        pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("page", [name for name in NAMES if blocks(name, "")])
def test_commands_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for _, code in blocks(page, "", "bash", "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in COMMANDS:
                given = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert given - options_of(words[0]) == set(), line
            elif words and words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
            for script in re.findall(r"\b(?:examples|benchmarks)/[\w/]+\.py", line):
                assert (ROOT / script).is_file(), line
            for module in re.findall(r"-m (nearest_etf[\w.]*)", line):
                importlib.import_module(module)
            for named in re.findall(r"(?:nearest-etf|\.whl|-e '?\"?\.)\[([\w,]+)\]", line):
                assert set(named.split(",")) <= set(extras), line


@pytest.mark.parametrize("page", NAMES)
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", BLOCK.sub("", text)):
        assert ((ROOT / page).parent / target).exists(), target
    folders = "common|reference|torchport|export|root|tests|benchmarks|examples|docs"
    for name in re.findall(rf"`(?!\S*NAME)((?:{folders})/[\w./-]+\.(?:py|md|json|png|svg|gif))(?:::\w+)?`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ROOMS)
def test_every_public_name_is_in_the_api_pages(page: str) -> None:
    text = (ROOT / "docs" / "api" / page).read_text(encoding="utf-8")
    room = importlib.import_module(f"nearest_etf.{ROOMS[page]}")
    listed = re.findall(rf"::\s+nearest_etf\.{ROOMS[page]}\.(\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(room.__all__)


def test_pictures_are_small_and_the_rooms_are_drawn_from_the_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from docs.pictures.rooms import PICTURE, picture

    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python -m docs.pictures.rooms"
    assert all(path.stat().st_size < 1e6 for path in PICTURE.parent.iterdir() if path.is_file())


def test_formulas_keep_indices_of_accented_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """In display style docutils alone sets the index of a letter with a bar below the letter."""
    nodes = pytest.importorskip("docutils.nodes")
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    mathml = importlib.import_module("mathml").mathml
    for source in (r"\bar U_0", r"\bar{U}_0", r"\hat H^\top", r"\tilde \mu_G"):
        formula = mathml(nodes.math_block(source, source), display=True)
        assert "<msu" in formula, source
        assert "</mover>" in formula, source
        assert "munder" not in formula, source


def test_every_picture_has_a_script() -> None:
    pictures = [path for path in (ROOT / "docs" / "pictures").iterdir() if path.suffix in (".gif", ".png", ".svg")]
    assert len(pictures) >= 3
    for path in pictures:
        assert f"python -m docs.pictures.{path.stem}\n" in path.with_suffix(".py").read_text(encoding="utf-8"), path


@pytest.mark.parametrize("page", NAMES)
def test_every_table_has_a_header(page: str) -> None:
    """A blank line within a table turns the rows below it into text, without a warning."""
    lines = ["", *(ROOT / page).read_text(encoding="utf-8").splitlines(), ""]
    first = [i for i, line in enumerate(lines) if line.startswith("|") and not lines[i - 1].startswith("|")]
    assert all(re.fullmatch(r"\|[ :|-]+\|", lines[i + 1]) for i in first), [lines[i] for i in first]
