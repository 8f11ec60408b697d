"""Runs grouped and gathered over seeds: statistics, tables, words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.torchport.training.progress import result_line
from nearest_etf.torchport.training.report.groups import Group, group_runs
from nearest_etf.torchport.training.report.tables import Best, accuracy_at, as_latex, as_markdown, as_text, summary
from nearest_etf.torchport.training.report.words import comparison, verdict
from nearest_etf.torchport.training.run.reading import read_run

HEADS = ("learned", "fixed", "implicit")


def groups_of(runs: list[str] | list[Path]) -> list[Group]:
    return group_runs([read_run(run) for run in runs])


def test_runs_are_grouped_by_all_but_the_seed(write_run: Callable[..., Path], runs: list[str], tmp_path: Path) -> None:
    groups = groups_of(list(reversed(runs)))
    assert [group.label for group in groups] == list(HEADS)
    assert [run.seed for run in groups[0].runs] == [0, 1]
    others = [write_run(tmp_path, "implicit", 0, delta=delta) for delta in (0.001, 0.1)]
    assert [g.label for g in groups_of(others)] == [
        "implicit · δ=0.001",
        "implicit · δ=0.1",
    ]


def test_statistics_over_seeds(runs: list[str]) -> None:
    group = groups_of(runs)[0]
    values = group.values("train_nc1")
    spread = group.over_seeds("train_nc1")
    assert values.shape == (2, 6)
    np.testing.assert_allclose(spread["mean"], values.mean(0))
    np.testing.assert_allclose(spread["std"], values.std(0))
    np.testing.assert_allclose(spread["median"], np.median(values, 0))
    assert np.isnan(group.over_seeds("absent")["min"]).all()


def test_epochs_that_were_not_measured_are_left_out(write_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run(tmp_path, "fixed", 0)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:5]) + '\n{"epoch": 6, "lr": 0.1}\n{"epoch": 7, "cut sh')
    (group,) = groups_of([run])
    assert group.epochs.tolist() == [1, 2, 3, 4, 5, 6]
    assert group.final("train_nc1")[0] == json.loads(lines[4])["train_nc1"]
    assert group.epochs_to(1.0)[0] == math.inf


def test_formats() -> None:
    table = [["head", "NC1"], ["implicit_a", "5 (4–never)"]]
    best = [["head", "NC1"], ["a · τ=5", Best("5")]]
    assert as_markdown(best).endswith("| a · τ=5 | **5** |\n")
    assert r"a $\cdot$ $\tau$=5 & \textbf{5} \\" in as_latex(best)
    assert as_text(best).splitlines()[2] == "a · τ=5  5"
    assert as_markdown(table) == "| head | NC1 |\n|---|---|\n| implicit_a | 5 (4–never) |\n"
    assert r"implicit\_a & 5 (4--$\infty$) \\" in as_latex(table)
    hostile = [["head"], [r"a|b#c$d&e{f}~g^h\i"]]
    assert r"| a\|b#c$d&e{f}~g^h\i |" in as_markdown(hostile)
    assert r"a|b\#c\$d\&e\{f\}\textasciitilde{}g\^{}h\textbackslash{}i \\" in as_latex(hostile)


def test_the_best_held_out_median_is_marked(runs: list[str]) -> None:
    groups = groups_of(runs)
    heading, *rows = summary(groups)
    marked = [(row[0], name) for row in rows for name, cell in zip(heading, row, strict=True) if isinstance(cell, Best)]
    assert marked == [("implicit", "test accuracy %")]
    assert [isinstance(row[1], Best) for row in accuracy_at(groups, [6])[1:]] == [False, False, True]
    assert not any(isinstance(cell, Best) for row in summary(groups[:1]) for cell in row)  # of one group there is none


def test_sentences_agree_with_the_numbers(runs: list[str]) -> None:
    learned, _, implicit = groups = groups_of(runs)
    assert "never 95 %" not in verdict(implicit)
    assert re.search(r"collapsed to within 0\.01 of a common simplex ETF since epoch \d", verdict(implicit))
    assert "collapsed to within 0.2 of" in verdict(learned)
    assert comparison(groups).index("implicit") < comparison(groups).index("learned")
    assert len(summary(groups)) == 4


def test_verdicts_without_a_simplex_etf(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """For K > d+1 the distances to the nearest ETF are undefined, and absent from a run's rows."""
    run = write_run(tmp_path, "learned", 0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "etf_distance" not in name} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (group,) = groups_of([run])
    assert "No simplex ETF exists for so many classes in so few dimensions" in verdict(group)
    assert "NC1 at" in verdict(group)
    assert "collapsed" not in verdict(group)


@pytest.mark.parametrize(
    ("splits", "held_out", "word"),
    [
        (("train",), None, None),
        (("train", "val"), "val", "validation"),
        (("train", "test"), "test", "test"),
        (("train", "val", "test"), "test", "test"),
    ],
)
def test_any_set_of_splits(
    splits: tuple[str, ...],
    held_out: str | None,
    word: str | None,
    write_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Tables have an accuracy column per split; sentences and the typical run use test data, else validation data."""
    runs = [write_run(tmp_path, head, seed, splits=splits) for head in HEADS for seed in (0, 1, 2)]
    groups = groups_of(runs)
    assert [cell for cell in summary(groups)[0] if "accuracy" in cell] == [f"{split} accuracy %" for split in splits]
    assert accuracy_at(groups, [6])[0][1] == f"{held_out or 'train'} top-1 % at epoch 6"
    assert "–" not in accuracy_at(groups, [6])[1]
    ends = groups[0].final(f"{held_out or 'train'}_accuracy")
    assert groups[0].typical.seed == int(np.argsort(ends)[1])
    if word:
        assert f"; {word} accuracy " in verdict(groups[0])
        assert f"Median {word} accuracy of the results: implicit" in comparison(groups)
    else:
        assert ";" not in verdict(groups[0])
        assert comparison(groups).endswith("training accuracy: implicit (4), fixed (6), learned (never).")


def test_the_summary_has_the_announced_results(write_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [write_run(tmp_path, head, seed, splits=("train", "val", "test")) for head in HEADS for seed in (0, 1)]
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines()
    best = json.loads(lines[2]) | {"val_accuracy": 0.999, "test_accuracy": 0.75, "train_nc1": 0.5}
    (runs[0] / "metrics.jsonl").write_text("\n".join([*lines[:2], json.dumps(best), *lines[3:], ""]))
    for run in runs[:3]:
        (run / "best.pt").touch()
    exact = {"train_accuracy": 1.0, "val_accuracy": 1.0, "test_accuracy": 0.9, "train_nc1": 0.25}
    for run in runs[4:]:
        (run / "recalibrated.pt").touch()
        (run / "recalibrated.json").write_text(json.dumps({"epoch": 6, "running": {}, "exact": exact}))
    found = groups_of(runs)
    heading, *rows = summary(found)
    assert [row[heading.index("result")] for row in rows] == [
        "best.pt (epochs 3–6)",
        "best.pt (epoch 6), last.pt (epoch 6)",
        "recalibrated.pt (epoch 6)",
    ]
    assert rows[2][heading.index("test accuracy %")] == Best("90.00")
    assert rows[2][heading.index("NC1")] == "0.25"
    assert "test accuracy 90.00 % with recalibrated.pt (epoch 6)" in verdict(found[2])
    for run in runs:  # one run: the numbers of its last printed line
        (one,) = groups_of([run])
        row = dict(zip(*summary([one]), strict=True))
        announced = "  ".join(f"{split} {row[f'{split} accuracy %']} %" for split in ("train", "val", "test"))
        line = result_line(read_run(run))
        assert line.startswith(f"result: {row['result'][:-1]}")
        assert line.endswith(announced)


def test_heads_have_one_order(write_run: Callable[..., Path], tmp_path: Path) -> None:
    order = ["linear", "learned", "fixed", "implicit", "class-mean", "tight-frame", "another"]
    runs = []
    for name in reversed(order):
        run = write_run(tmp_path / name, "fixed", 0, epochs=1)
        config = json.loads((run / "config.json").read_text())
        config["settings"]["head"] = name
        (run / "config.json").write_text(json.dumps(config))
        runs.append(run)
    assert [group.label for group in groups_of(runs)] == order
