"""Study B in small: a tiny network on synthetic images, a resumed result file, and the statistics."""

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with a network of one layer and separable synthetic images."""
    monkeypatch.syspath_prepend(str(STUDIES))
    module = importlib.import_module("fine_tune")

    def images_of(data: str, per_class: int, seed: int, other: int, tune: bool, classes: int | None) -> Any:
        rng = np.random.default_rng([seed, tune])
        centres = np.random.default_rng(0).standard_normal((10, 3, 4, 4))
        parts: list[torch.Tensor] = []
        for n in (10 * per_class, other):
            labels = rng.permutation(np.arange(n) % 10)
            parts += [torch.from_numpy(centres[labels] + rng.standard_normal((n, 3, 4, 4))).float()]
            parts += [torch.from_numpy(labels)]
        return module.Images(*parts, 10)

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())

    monkeypatch.setattr(module, "images_of", images_of)
    monkeypatch.setattr(module, "Backbone", network)
    small = module.Scale(seeds=2, validation=100, test=100, curve=50, variations=module.SMALL.variations[1:2])
    monkeypatch.setattr(module, "SMALL", small)
    monkeypatch.setattr(module, "CENTRE", {4: (*module.CENTRE[4],)})
    monkeypatch.setattr(module, "GRID", module.RATES[4:5])
    monkeypatch.setattr(module, "RATES", module.GRID)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def call(study: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["fine_tune.py", *arguments])
    study.main()


def test_a_study_is_planned_run_resumed_and_summarised(study, monkeypatch, tmp_path, capsys):
    path = tmp_path / "rows.json"
    call(study, monkeypatch, "--json", str(path), "--dry-run")
    planned = capsys.readouterr().out
    assert planned.count("stage='tune'") == 4 * 5 + 2  # one rate; ntce and nonl have one temperature
    assert planned.count("stage='report'") == 2 * (10 + 4)
    assert "hours on one core; 0 are done" in planned
    assert not path.exists()

    call(study, monkeypatch, "--json", str(path), "--minutes", "0")
    assert not path.exists()

    # Killed during a run.
    whole, ran = study.trained, []

    def killed(*arguments: Any) -> dict[str, Any]:
        if len(ran) == 7:
            raise KeyboardInterrupt
        ran.append(arguments[0])
        return whole(*arguments)

    monkeypatch.setattr(study, "trained", killed)
    with pytest.raises(KeyboardInterrupt):
        call(study, monkeypatch, "--json", str(path))
    before = json.loads(path.read_text())["rows"]
    assert len(before) == 7

    monkeypatch.setattr(study, "trained", whole)
    call(study, monkeypatch, "--json", str(path))
    stored = json.loads(path.read_text())
    assert stored["rows"][:7] == before
    assert [row["call"] for row in stored["rows"]] == [0] * 7 + [1] * (len(stored["rows"]) - 7)
    assert "0 runs left" in capsys.readouterr().out
    reported = [row for row in stored["rows"] if row["stage"] == "report"]
    assert len(reported) == 2 * (10 + 4)
    centre = {row["head"]: row for row in reported if (row["factor"], row["seed"]) == ("centre", 0)}
    assert set(centre["implicit"]["curve"]) == {"0", "1", "2", "4"}
    assert centre["implicit"]["accuracy"] > 0.3  # of ten classes
    for aligned in ("learned", "fixed", "implicit", "class-mean", "tight-frame", "probe"):
        assert centre[aligned]["curve"]["0"] > 0.3, aligned
    assert centre["implicit-detached"]["temperature"] == centre["implicit"]["temperature"]
    assert centre["tight-frame"]["rate"] == centre["implicit"]["rate"]
    for row in reported:
        choice = study.chosen(stored["rows"], study.HEADS[row["head"]].tuned_as or row["head"], 4)
        assert {name: row[name] for name in choice} == choice

    call(study, monkeypatch, "--json", str(path), "--summary")
    told = capsys.readouterr().out
    assert "| centre, 4 epochs | implicit |" in told
    assert "| not aligned, 4 epochs | implicit |" in told
    assert told.count("**does not stand**") == 2
    assert "undecided" in told  # two pairs are too few
    assert " better;" not in told


def test_a_seed_repeats_its_figures_and_its_images_for_all_heads(study):
    images = study.images_of("cifar10", 10, 3, 100, False, None)
    run = study.Run("report", "centre", "implicit", 4, 3, rate=0.01, temperature=10.0)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(study.trained(run, images, study.Backbone(), 50))
    assert results[0]["curve"] == results[1]["curve"]


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_frozen_batch_norm_does_not_change(study, freeze_bn):
    images = study.images_of("cifar10", 10, 3, 100, False, None)
    run = study.Run("report", "bn", "linear", 4, 3, freeze_bn=freeze_bn, rate=0.01)
    backbone = study.Backbone()
    study.trained(run, images, backbone, 50)
    assert bool((backbone[1].running_mean == 0).all()) == freeze_bn


def test_a_run_that_diverges_ends_at_chance(study):
    images = study.images_of("cifar10", 10, 3, 100, False, None)
    run = study.Run("report", "centre", "linear", 4, 3, rate=1e30)
    found = study.trained(run, images, study.Backbone(), 50)
    assert found["diverged"]
    assert found["accuracy"] == 0.1


def test_the_grid_is_extended_while_the_best_rate_is_at_its_end(study, monkeypatch):
    monkeypatch.setattr(study, "RATES", (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1))
    monkeypatch.setattr(study, "GRID", study.RATES[2:5])

    def rows(*rates: float, best: float) -> list[dict[str, Any]]:
        trial = study.Run("tune", "centre", "learned", 4, 100)
        runs = [replace(trial, rate=rate, temperature=tau) for rate in rates for tau in (5.0, 10.0)]
        runs = [r for r in runs if r.rate in study.GRID or r.temperature == 10]
        return [{**vars(r), "accuracy": 0.5 - abs(math.log(r.rate / best)) / 100 + r.temperature / 1e4} for r in runs]

    monkeypatch.setitem(study.HEADS, "learned", study.Contestant(study.LearnedHead, values=(5.0, 10.0)))
    grid = study.GRID

    def asked(found: list[dict[str, Any]]) -> list[float]:
        done = {(row["rate"], row["temperature"]) for row in found}
        runs = list(study.tuning(found, study.SMALL, "learned", 4))
        return [r.rate for r in runs if (r.rate, r.temperature) not in done]

    assert asked(rows(*grid, best=0.003)) == []
    assert asked(rows(*grid, best=0.03)) == [0.03]
    assert asked(rows(*grid, 0.03, best=0.03)) == [0.1]
    assert asked(rows(*grid, 0.03, 0.1, best=0.03)) == []
    assert asked(rows(*grid, 0.03, 0.1, best=1)) == []  # there is no larger rate
    assert asked(rows(*grid, best=1e-5)) == [0.0003]
    assert study.chosen(rows(*grid, 0.03, 0.1, best=0.03), "learned", 4) == {"rate": 0.03, "temperature": 10.0}
    assert asked(rows(*grid[1:], best=0.003)) == [0.001, 0.001]  # the grid itself first


def test_verdicts_follow_the_protocol(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    module = importlib.import_module("paired")
    rng = np.random.default_rng(0)
    for n in (2, 5, 10, 20):
        x = rng.standard_normal(n)
        low, high = module.Paired(tuple(x)).interval
        expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high))
    assert module.Paired((1.0, 1.1, 0.9, 1.0, 1.0)).verdict == "better"
    assert module.Paired((-1.0, -1.1, -0.9, -1.0, -1.0)).verdict == "worse"
    assert module.Paired((1.0, 1.1, 0.9, 1.0)).verdict == "undecided"  # four pairs
    assert module.Paired((5.0, 5.1, 4.9, 5.0, -0.1)).verdict == "undecided"  # one pair disagrees
    assert module.Paired((9.0, 0.1, 0.1, 0.1, 0.1)).verdict == "undecided"  # the interval contains zero
    assert module.Paired((*[1.0] * 9, -0.5)).verdict == "better"  # nine of ten
    assert module.Paired((*[1.0] * 8, -0.1, -0.1)).verdict == "undecided"
    assert module.Paired((0.0,) * 5).verdict == "undecided"
    pair = module.paired({0: 0.7, 1: 0.8, 2: 0.9}, {1: 0.7, 2: 0.9, 3: 0.1})
    assert pair.differences == pytest.approx((0.1, 0.0))
    assert pair.agreeing == 1


def test_full_scale_is_planned(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    module = importlib.import_module("fine_tune")
    runs = list(module.plan(module.FULL, []))
    assert {run.factor for run in runs} == {"centre", *(name for name, *_ in module.FULL.variations)}
    assert len({run.key() for run in runs}) == len(runs)
    assert sum(run.stage == "report" for run in runs) > 500


def test_tables_show_the_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    study, written = importlib.import_module("fine_tune"), importlib.import_module("fine_tune_tables")
    rows = []
    for seed in range(5):
        for head, accuracy, curve in (("learned", 0.6, (0.5, 0.55)), ("implicit", 0.62, (0.55, 0.7 if seed else 0.59))):
            run = study.Run("report", "centre", head, 4, seed, rate=0.003, temperature=10.0)
            ends = dict(zip(("0", "1", "2", "4"), (*curve, accuracy, accuracy), strict=True))
            rows.append({**vars(run), "accuracy": accuracy + seed / 1000 * (head == "implicit"), "curve": ends})
    lines = written.tables(rows).splitlines()
    low, high = stats.ttest_1samp([2.0, 2.1, 2.2, 2.3, 2.4], 0).confidence_interval(0.95)
    told = f"+2.2 [{low:+.1f}, {high:+.1f}] | better | +2.0 +2.1 +2.2 +2.3 +2.4 |"
    assert f"| centre, 4 epochs | implicit − learned | {told}" in lines
    assert "| centre, 4 epochs | implicit | rate 0.003, τ = 10 | 0.550 | 0.622 (0.620–0.624) | 5 |" in lines
    assert any("| 1; 2 1 1 1 1 | 1; never 1 1 1 1 |" in line for line in lines)
    assert any("| 2; 2 2 2 2 2 | never; never never never never never |" in line for line in lines)
