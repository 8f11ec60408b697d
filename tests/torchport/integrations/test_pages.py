"""The pages about other libraries: the tests, examples and flags exist, and the versions are the pinned ones."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from nearest_etf.torchport.training.etf_train import build_parser

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
MATRIX = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
FLAGS = (ROOT / "docs" / "from-timm.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """Cells of all rows of the tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_every_cell_of_the_matrix_names_a_test() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", MATRIX)
    assert len(named) == len(set(named)) > 25
    for file, test in named:
        assert f"def {test}(" in (HERE / file).read_text(encoding="utf-8"), (file, test)


def test_versions_of_the_matrix_are_the_pinned_ones() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    pins = {name.lower().replace("-", "_"): version for name, version in pins.items()}
    libraries = "torchmetrics|Lightning|pytorch_lightning|Transformers|Accelerate|safetensors|huggingface_hub"
    found = re.findall(rf"\b({libraries})`? (\d+\.\d+\.\d+)", MATRIX)
    assert len(found) == 8
    for name, version in found:
        assert pins[name.lower()] == version


def test_versions_of_the_timm_environment_are_the_pinned_ones() -> None:
    pins = (ROOT / ".ci" / "integrations.py").read_text(encoding="utf-8")
    for name, version in re.findall(r"\b(timm|torchvision|torch) (\d+\.\d+\.\d+)", MATRIX[MATRIX.index("| timm 1") :]):
        assert f'"{name}=={version}"' in pins


def test_ood_scores_are_those_of_the_study() -> None:
    results = ROOT / "benchmarks" / "results"
    files = [json.loads((results / f"ood-{name}.json").read_text(encoding="utf-8")) for name in ("digits", "subsets")]
    measured = [row for file in files for row in file["rows"]]
    head, _, *table = [row for row in rows(MATRIX.partition("## Out-of-distribution images")[2]) if len(row) == 8]
    assert len(table) == 12
    for pair, kind, *cells in table:
        data, _, foreign = pair.split()
        seeds = [row for row in measured if (row["data"], row["ood"], row["head"]) == (data, foreign, kind)]
        assert len(seeds) == 3
        for name, cell in zip(head[2:], cells, strict=True):
            shares = [[100 * row[figure][name] for row in seeds] for figure in ("auroc", "fpr95")]
            shown = " / ".join(f"{statistics.mean(x):.1f}±{statistics.stdev(x):.1f}" for x in shares)
            better = all(row["auroc"][name] > row["auroc"]["max-softmax"] for row in seeds)
            assert cell == shown + " *" * better, (pair, kind, name)


@pytest.mark.parametrize("text", [MATRIX, FLAGS])
def test_link_targets_exist(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_flags_compared_with_those_of_timm_exist() -> None:
    known = {flag for action in build_parser()._actions for flag in action.option_strings}
    table = [row for row in rows(FLAGS) if len(row) == 3][2:]
    assert len(table) > 30
    named = {flag for row in table for flag in re.findall(r"--[\w-]+", row[1])}
    assert len(named) > 20
    assert named <= known
    (command,) = re.findall(r"^etf-train (--data .*?)\n```", FLAGS, re.DOTALL | re.MULTILINE)
    arguments = command.replace("\\\n", " ").split()
    assert build_parser().parse_args(arguments).backbone == "timm:resnet50"
