"""docs/evidence.md against the result files: every table again, and its figures by NumPy and SciPy."""

import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "evidence.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- begin: (\S+) -->\n(.*?)<!-- end -->", TEXT, re.DOTALL))
PROSE = re.sub(r"<!-- begin.*?<!-- end -->|`[^`]*`|\]\([^)]*\)", "", TEXT, flags=re.DOTALL)
FINE_TUNING = [
    row for n in (1, 2) for row in json.loads((RESULTS / f"fine-tune-{n}.json").read_text(encoding="utf-8"))["rows"]
]
REPORTED = [row for row in FINE_TUNING if row["stage"] == "report"]


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "studies"))
    return importlib.import_module("evidence")


def lines_of(block: str) -> list[dict[str, str]]:
    """The lines of a block's first table, by the names of its columns."""
    table = [line.strip("| ").split(" | ") for line in BLOCKS[block].splitlines() if line.startswith("|")]
    return [dict(zip(table[0], line, strict=True)) for line in table[2:]]


def accuracies(head: str, factor: str, epochs: int) -> np.ndarray[Any, Any]:
    """Accuracies for the seeds 0…4."""
    own = {
        row["seed"]: row["accuracy"]
        for row in REPORTED
        if (row["head"], row["factor"], row["epochs"]) == (head, factor, epochs)
    }
    assert sorted(own) == [0, 1, 2, 3, 4], (head, factor, epochs)
    return np.array([own[seed] for seed in range(5)])


def gain(head: str, other: str, factor: str = "centre", epochs: int = 4, its_factor: str | None = None) -> float:
    """The mean paired difference, in points."""
    return 100 * float(np.mean(accuracies(head, factor, epochs) - accuracies(other, its_factor or factor, epochs)))


def setting_of(line: dict[str, str]) -> tuple[str, int]:
    factor, _, epochs = line["setting"].rpartition(", ")
    return factor, int(epochs.split()[0])


def test_every_table_is_the_output_of_its_command(evidence):
    new = dict(re.findall(r"<!-- begin: (\S+) -->\n(.*?)<!-- end -->", evidence.rebuilt(TEXT), re.DOTALL))
    for name in BLOCKS:
        assert new[name] == BLOCKS[name], f"{name}: run python benchmarks/studies/evidence.py"
        assert f"evidence.py {name}`" in BLOCKS[name]
    assert set(BLOCKS) == set(evidence.TABLES)


def test_the_page_is_written_and_checked_by_the_command(evidence, monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(evidence, "PAGE", page)
    page.write_text("a\n<!-- begin: relu-floor -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["evidence.py", "--check"])
    with pytest.raises(SystemExit, match="relu-floor"):
        evidence.main()
    monkeypatch.setattr("sys.argv", ["evidence.py"])
    evidence.main()
    assert "| 10 | 5 |" in page.read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["evidence.py", "--check"])
    evidence.main()
    monkeypatch.setattr("sys.argv", ["evidence.py", "relu-floor"])
    evidence.main()
    assert capsys.readouterr().out.strip() in page.read_text(encoding="utf-8")
    with pytest.raises(KeyError):
        evidence.rebuilt("<!-- begin: no-such-table -->\n<!-- end -->")


@pytest.mark.parametrize("block", ["fine-tuning-named", "fine-tuning-factors", "fine-tuning-secondary"])
def test_differences_and_verdicts_agree_with_scipy(block):
    for line in lines_of(block):
        head, other = line["comparison"].split(" − ")
        differences = accuracies(head, *setting_of(line)) - accuracies(other, *setting_of(line))
        compare(line, differences)


def test_differences_between_settings_agree_with_scipy():
    for line in lines_of("fine-tuning-between"):
        sides = [re.fullmatch(r"(\S+) \((.*)\)", side).groups() for side in line["comparison"].split(" − ")]
        compare(line, accuracies(*sides[0], 4) - accuracies(*sides[1], 4))


def compare(line: dict[str, str], differences: np.ndarray[Any, Any]) -> None:
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    told = [float(x) for x in re.findall(r"[+-]\d+\.\d", line["mean [95 % interval]"])]
    assert told == pytest.approx([100 * x for x in (differences.mean(), *interval)], abs=0.0501), line
    assert [float(x) for x in line["each seed"].split()] == pytest.approx(100 * differences, abs=0.0501)
    agree = bool(np.all(differences > 0) or np.all(differences < 0))
    decided = agree and not interval.low <= 0 <= interval.high
    verdict = ("better" if differences.mean() > 0 else "worse") if decided else "undecided"
    assert line["verdict"] == verdict, line


def test_medians_and_ranges_agree_with_numpy():
    for line in lines_of("fine-tuning-accuracies") + lines_of("fine-tuning-factors-accuracies"):
        values = accuracies(line["head"], *setting_of(line))
        told = [float(x) for x in re.findall(r"\d\.\d{3}", line["test accuracy: median (range)"])]
        assert told == pytest.approx([np.median(values), values.min(), values.max()], abs=0.000501)
        assert line["seeds"] == "5"


def test_the_claims_follow_the_named_comparisons():
    verdicts = {(*setting_of(line), line["comparison"]): line["verdict"] for line in lines_of("fine-tuning-named")}
    small = {verdicts["centre", 4, f"{head} − learned"] for head in ("implicit", "fixed")}
    first, second = lines_of("fine-tuning-claims")
    assert (first["verdict"] == "**stands**") == ("better" in small)
    both = "better" in small and verdicts["centre", 20, "implicit − learned"] == "better"
    assert (second["verdict"] == "**stands**") == both


def test_every_head_had_the_same_trials_and_keeps_its_choice():
    trials = [row for row in FINE_TUNING if row["stage"] == "tune"]
    assert {row["seed"] for row in trials} == {100}
    choices: dict[tuple[str, int], tuple[Any, ...]] = {}
    knobs = ("temperature", "head_rate", "penalty")
    for epochs, heads in ((4, ("linear", "probe", "learned", "fixed", "implicit", "ntce", "nonl")), (20, None)):
        for head in heads or ("linear", "probe", "learned", "fixed", "implicit"):
            own = [row for row in trials if (row["head"], row["epochs"]) == (head, epochs)]
            on_grid = [row for row in own if row["rate"] in (0.001, 0.003, 0.01)]
            assert len(on_grid) == (3 if head in ("ntce", "nonl") else 12)
            best = max(own, key=lambda row: (row["accuracy"], -row["rate"], *(-(row[name] or 0) for name in knobs)))
            rates = {row["rate"] for row in own}
            assert min(rates) < best["rate"] < max(rates)  # not at an end of the tried rates
            choices[head, epochs] = (best["rate"], *(best[name] for name in knobs))
    tuned_as = {name: "implicit" for name in ("implicit-detached", "class-mean", "tight-frame")}
    tuned_as["fixed-random"] = "fixed"
    for row in REPORTED:
        found = (row["rate"], *(row[name] for name in knobs))
        expected = choices[tuned_as.get(row["head"], row["head"]), row["epochs"]]
        if row["factor"] == "head rate ×10":
            assert row["head_rate"] == 10
            expected = (*expected[:2], 10.0, expected[3])
        assert found == expected
    for line in lines_of("fine-tuning-temperatures"):
        rate, tau, *_ = choices[line["head"], int(line["epochs"])]
        bold = [name for name, cell in line.items() if cell.startswith("**")]
        assert bold == [f"τ = {tau:g}"]
        assert line[bold[0]].endswith(f"{rate:g}**")


def test_numbers_of_the_text_are_in_the_tables():
    tables = set(re.findall(r"\d+\.\d+", " ".join(BLOCKS.values())))
    missing = set(re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", PROSE)) - tables
    assert not missing - {"0.1"}  # chance, of ten classes


FROZEN = (("centre", 4), ("10 per class", 4), ("200 per class", 4), ("CIFAR-100, 20 classes", 4), ("Fashion-MNIST", 4))
LATER = (("centre", 20), ("10 per class", 20), ("CIFAR-100, 20 classes", 20))


def test_rounded_numbers_of_the_text_agree_with_the_rows():
    said = " ".join(TEXT.split())

    def matches(text: str, *values: float) -> None:
        assert text in said
        numbers = [int(x) for x in re.findall(r"(?<!-)\b\d+", text)]
        assert numbers == [round(x) for x in values], (text, values)

    aligned = gain("learned", "learned", its_factor="not aligned")
    faster = gain("learned", "learned", "head rate ×10", its_factor="centre")
    ahead = gain("implicit", "learned", its_factor="head rate ×10")
    matches("worth 19 points at 4 epochs, the rate 2; implicit stays 2 ahead", aligned, 4, faster, ahead)
    behind = [gain("implicit", "linear", *setting) for setting in FROZEN]
    matches("3 to 17 points behind implicit after 4 epochs", min(behind), max(behind), 4)
    behind = [gain("implicit", "linear", *setting) for setting in LATER]
    matches("3 to 7 after 20", min(behind), max(behind), 20)
    matches("6 to 7 points behind implicit at both", *(gain("implicit", "probe", epochs=e) for e in (4, 20)))
    lead = [gain("implicit", "learned", f, e) for f in ("centre", "CIFAR-100, 20 classes") for e in (4, 20)]
    text = "from 4 to 20 epochs, from 4 points to 2 on CIFAR-10, from 4 to 1 on 20 classes"
    matches(text, 4, 20, *lead[:2], *lead[2:], 20)
    matches("it stays 4 points", gain("implicit", "learned", "200 per class"))
    costs = [gain(h, h, its_factor="batch norm learns") for h in ("linear", "learned", "fixed", "implicit")]
    assert "more than ten points" in said
    assert min(costs) > 10
    matches("implicit ends 12 points behind learned", -gain("implicit", "learned", "batch norm learns"))
    pairs = [accuracies("implicit", "centre", e) - accuracies("tight-frame", "centre", e) for e in (4, 20)]
    matches("up to 2 points in a single seed", 100 * float(np.abs(pairs).max()))


def test_statements_on_digits_agree_with_the_rows():
    rows = [row for n in (1, 2) for row in json.loads((RESULTS / f"from-scratch-{n}.json").read_text("utf-8"))["rows"]]

    def of(head: str, factor: str) -> np.ndarray[Any, Any]:
        own = [row for row in rows if (row["stage"], row["factor"], row["head"]) == ("report", factor, head)]
        found = {row["seed"]: row["accuracy"] for row in own}
        return np.array([found[seed] for seed in range(20)])

    before = of("implicit", "before the last ReLU") - of("learned", "before the last ReLU")
    interval = stats.ttest_1samp(before, 0).confidence_interval(0.95)
    assert f"+1.2 [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] better" in BLOCKS["from-scratch-named"]
    assert round(100 * before.mean(), 1) == 1.2
    assert (before > 0).sum() >= 18
    after = of("implicit", "centre") - of("learned", "centre")
    assert (after > 0).sum() < 18  # undecided
    assert (of("ntce", "centre") > of("learned", "centre")).sum() >= 18
    assert abs(np.median(of("linear", "centre")) - np.median(of("implicit", "centre"))) < 0.001


def test_statements_on_tuning_agree_with_the_rows():
    def at(head: str, epochs: int, tau: float, rate: float | None = None) -> float:
        return max(
            row["accuracy"]
            for row in FINE_TUNING
            if (row["stage"], row["head"], row["epochs"], row["temperature"]) == ("tune", head, epochs, tau)
            and rate in (None, row["rate"])
        )

    for epochs in (4, 20):
        assert all(at("implicit", epochs, tau) > at("learned", epochs, tau) for tau in (5, 10, 20, 40))
        assert max(at(head, epochs, 40, 0.01) for head in ("implicit", "learned")) < 0.12


def test_the_loss_of_non_negative_features_is_that_of_a_smaller_temperature():
    rows = json.loads((RESULTS / "relu-floor.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * 4 * 2 * 2 * 2
    for row in rows:
        K, tau, loss = row["K"], row["temperature"], row["loss"]
        if loss < 1e-8:
            continue
        margin = math.log((K - 1) / math.expm1(loss))  # from loss = log(1 + (K − 1) exp(−margin))
        if row["signed"]:
            assert margin == pytest.approx(tau * K / (K - 1), rel=1e-3)
        elif row["frame"] == "canonical":
            assert margin == pytest.approx(tau * math.sqrt(K / (K - 1)), rel=1e-3)
        else:
            assert margin == pytest.approx(tau / math.sqrt(2) * K / (K - 1), rel=0.03)


def test_half_of_the_energy_of_a_vertex_is_in_its_positive_part():
    rng, d, K = np.random.default_rng(0), 512, 100
    frame = np.linalg.qr(rng.standard_normal((d, K)))[0]
    W = math.sqrt(K / (K - 1)) * (frame - frame.mean(1, keepdims=True)).T  # a generally oriented simplex, (K, d)
    positive = np.maximum(W, 0)
    assert (positive**2).sum(1).mean() == pytest.approx(0.5, abs=0.01)
    h = positive / np.linalg.norm(positive, axis=1, keepdims=True)
    logits = h @ W.T
    own, others = logits.diagonal(), logits[~np.eye(K, dtype=bool)]
    assert own.mean() == pytest.approx(1 / math.sqrt(2), rel=0.01)
    assert others.mean() == pytest.approx(-1 / (math.sqrt(2) * (K - 1)), rel=0.02)


def test_statements_on_networks_sizes_and_failures_agree_with_the_rows():
    def of(study: str, factor: str, head: str, column: str = "accuracy") -> np.ndarray[Any, Any]:
        rows = json.loads((RESULTS / f"{study}.json").read_text(encoding="utf-8"))["rows"]
        found = {row["seed"]: row[column] for row in rows if (row["factor"], row["head"]) == (factor, head)}
        return np.array([found[seed] for seed in range(len(found))])

    def gain(study: str, factor: str, head: str, other: str, its_factor: str = "") -> float:
        differences = of(study, factor, head) - of(study, its_factor or factor, other)
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert interval.low > 0
        assert (differences > 0).mean() >= (1 if len(differences) < 10 else 0.9)
        return round(100 * float(differences.mean()), 1)

    said = " ".join(TEXT.split())
    over_linear = [gain("architectures", "transformer", head, "linear") for head in ("implicit", "fixed")]
    over_learned = gain("architectures", "transformer", "fixed", "learned")
    text = "better than linear by {} points and `fixed` by {}, and `fixed` also better than the learned head"
    assert f"{text.format(*over_linear)}, by {over_learned}." in said
    gained = gain("few-dimensions", "d = 6, as others", "learned", "learned", "d = 6")
    assert f"gains {gained} points there with those of the other heads" in said
    ahead = [gain("few-dimensions", f"d = {d}", "tight-frame", "learned", f"d = {d}, as others") for d in (4, 6)]
    assert "better at d = 4 and d = 6, by {} and {} points".format(*ahead) in said
    for column in ("rate", "temperature"):
        own, others = (("d = 6, as others", "learned"), ("d = 6", "tight-frame"))
        assert np.array_equal(of("few-dimensions", *own, column), of("few-dimensions", *others, column))
    assert not of("failures", "imbalance 0.01", "linear", "tail").any()
    for head, batch in ((head, batch) for head in ("linear", "learned", "fixed", "implicit") for batch in (8, 16)):
        fall = np.median(of("failures", "centre", head)) - np.median(of("failures", f"batch {batch}", head))
        assert fall < 1.01 / 360


def test_incomplete_settings_are_named_without_tables(evidence, monkeypatch, tmp_path):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    assert evidence.of_study("few-dimensions") == "Not yet run."
    assert evidence.growth() == "Not yet run."
    assert evidence.seconds() == "Not yet measured."
    runs = [{**vars(run), "rate": 0.001, "temperature": 10.0} for run in evidence.planned("few-dimensions")]
    rows = [{**run, "accuracy": 0.5 + run["seed"] / 100, "at": [20], "test": [0.5], "call": 0} for run in runs]
    path = tmp_path / "few-dimensions.json"
    path.write_text(json.dumps({"calls": [], "rows": rows[:10]}), encoding="utf-8")
    assert "no setting is complete" in evidence.of_study("few-dimensions")
    path.write_text(json.dumps({"calls": [], "rows": rows[:100]}), encoding="utf-8")
    told = evidence.of_study("few-dimensions")
    assert "**d = 4**" in told
    assert "**d = 6**" not in told
    assert told.endswith("Not yet complete: d = 6, d = 8, d = 4, as others, d = 6, as others, d = 8, as others.")
    path.write_text(json.dumps({"calls": [], "rows": rows}), encoding="utf-8")
    assert "Not yet complete" not in evidence.of_study("few-dimensions")


def test_the_figure_shows_the_rows(evidence, monkeypatch, tmp_path):
    drawing = importlib.import_module("fine_tune_figure")
    left, middle, right = drawing.figure(FINE_TUNING).axes
    for axes, epochs in ((left, 4), (middle, 20)):
        for line in axes.lines:
            own = [r for r in REPORTED if (r["head"], r["factor"], r["epochs"]) == (line.get_label(), "centre", epochs)]
            ends = [row["curve"][str(epochs)] for row in own]
            assert line.get_ydata()[-1] == pytest.approx(np.median(ends))
        assert len(axes.lines) == 5
    means = [float(line.get_xdata()[0]) for line in right.lines if line.get_marker() == "|"]
    settings = [*LATER, *FROZEN]
    expected = [gain("implicit", other, *setting) for setting in settings for other in ("learned", "linear")]
    assert sorted(means) == pytest.approx(sorted(expected))
    sources = [str(RESULTS / f"fine-tune-{n}.json") for n in (1, 2)]
    path = tmp_path / "figure.png"
    monkeypatch.setattr("sys.argv", ["fine_tune_figure.py", "--json", *sources, "--to", str(path)])
    drawing.main()
    assert path.stat().st_size < 80_000
    assert (ROOT / "docs" / "fine-tuning.png").stat().st_size < 80_000


def test_seconds_are_measured_in_turns(evidence, monkeypatch, tmp_path, capsys):
    module = importlib.import_module("fine_tune_seconds")
    ran: list[Any] = []

    def trained(run: Any, *_: Any) -> dict[str, Any]:
        ran.append(run)
        return {"seconds": {"start": 2.0, "train": 8.0}}

    monkeypatch.setattr(module, "images_of", lambda *_: None)
    monkeypatch.setattr(module, "Backbone", importlib.import_module("torch").nn.Identity)
    monkeypatch.setattr(module.fine_tune, "trained", trained)
    sources = [str(RESULTS / f"fine-tune-{n}.json") for n in (1, 2)]
    path = tmp_path / "seconds.json"
    command = ["fine_tune_seconds.py", "--json", str(path), "--study", *sources, "--heads", "linear", "implicit"]
    monkeypatch.setattr("sys.argv", [*command, "--rounds", "2"])
    module.main()
    assert [run.head for run in ran] == ["linear", "implicit", "implicit", "linear"]
    assert all(run.rate is not None for run in ran)
    told = capsys.readouterr().out
    assert "| implicit | 200 (200–200) | 2.0 | 6 | never |" in told  # 0.60 after two epochs of ten steps
    assert len(json.loads(path.read_text(encoding="utf-8"))["rows"]) == 4
