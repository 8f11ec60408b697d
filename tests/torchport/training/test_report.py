"""etf-report on run folders written here: grouping, statistics, tables, words, and the page in a real browser."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.reference import canonical_etf
from nearest_etf.torchport.training.measure import Measurement, save_measurement
from nearest_etf.torchport.training.report import group_runs, load_run, main
from nearest_etf.torchport.training.report.tables import as_latex, as_markdown, comparison, summary, verdict

HEADS = ("learned", "fixed", "implicit")
FIGURES = 19  # 8 curves, 2 distributions, 3 Gram matrices, 3 views of class means, 3 of the solver
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_run(folder: Path, head: str, seed: int, epochs: int = 6, num_classes: int = 4, **settings: object) -> Path:
    """A run folder as etf-train leaves it: metrics that collapse, the faster the later the head stands in HEADS."""
    run = folder / f"{head}-seed{seed}{''.join(map(str, settings.values()))}"
    run.mkdir(parents=True)
    rng = np.random.default_rng([seed, HEADS.index(head)])
    speed = 1 + HEADS.index(head)
    config = {
        "settings": {
            "head": head,
            "seed": seed,
            "data": "digits",
            "backbone": "small-cnn",
            "epochs": epochs,
            **settings,
        },
        "data": {"name": "digits", "class_names": [f"class {k}" for k in range(num_classes)]},
        "provenance": {"device": "a <test> device", "threads": 2, "versions": {"torch": "2.13"}},
    }
    rows = []
    for epoch in range(1, epochs + 1):
        left = math.exp(-speed * epoch / 3) * (1 + 0.1 * rng.random())
        row: dict[str, float] = {"epoch": epoch, "lr": 0.1, "images_per_second": 1e4 + seed}
        for part, factor in (("train", 1.0), ("test", 1.2)):
            row |= {f"{part}_accuracy": 1 - 0.3 * factor * left, f"{part}_loss": 2 * left, f"{part}_nc1": factor * left}
            row |= {
                f"{part}_nc2_means": left,
                f"{part}_nc3": 0.5 * left,
                f"{part}_nc2": 0.0,
                f"{part}_cosine_margin": 1 - left,
            }
        if head == "implicit":
            row |= {"solver_gap": 1e-9, "solver_condition": 30.0}
        rows.append(row)
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "last.pt").touch()
    etf = canonical_etf(num_classes + 2, num_classes).T
    means = etf + 0.1 * rng.standard_normal(etf.shape)
    margins = rng.integers(0, 9, 200)
    arrays = {"weight": etf, "train_margins": margins, "test_margins": margins}
    arrays |= {"train_means": means, "test_means": means}
    if head == "implicit":
        arrays["singular_values"] = np.geomspace(1, 1e-3, num_classes)
    save_measurement(run, "last", Measurement(epochs, {"train_nc1": 0.1}, arrays))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three heads, two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    return [str(write_run(folder, head, seed)) for head in HEADS for seed in (0, 1)]


@pytest.fixture(scope="module")
def page(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "report.html"
    assert main([*runs, "--to", str(target), "--figures", str(target.parent / "figures")]) == 0
    return target


def test_runs_are_grouped_by_all_but_the_seed(runs: list[str], tmp_path: Path) -> None:
    groups = group_runs([load_run(run) for run in reversed(runs)])
    assert [group.label for group in groups] == list(HEADS)
    assert [run.seed for run in groups[0].runs] == [0, 1]
    others = [write_run(tmp_path, "implicit", 0, delta=delta) for delta in (0.001, 0.1)]
    assert [g.label for g in group_runs([load_run(r) for r in others])] == [
        "implicit, delta 0.001",
        "implicit, delta 0.1",
    ]


def test_statistics_over_seeds(runs: list[str]) -> None:
    group = group_runs([load_run(run) for run in runs])[0]
    values = group.values("train_nc1")
    spread = group.over_seeds("train_nc1")
    assert values.shape == (2, 6)
    np.testing.assert_allclose(spread["mean"], values.mean(0))
    np.testing.assert_allclose(spread["std"], values.std(0))
    np.testing.assert_allclose(spread["median"], np.median(values, 0))
    assert np.isnan(group.over_seeds("absent")["min"]).all()


def test_epochs_that_were_not_measured_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, "fixed", 0)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:5]) + '\n{"epoch": 6, "lr": 0.1}\n{"epoch": 7, "cut sh')
    (group,) = group_runs([load_run(run)])
    assert group.epochs.tolist() == [1, 2, 3, 4, 5, 6]
    assert group.final("train_nc1")[0] == json.loads(lines[4])["train_nc1"]
    assert group.epochs_to(1.0)[0] == math.inf


def test_tables(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runs, "--aggregate", str(tmp_path / "tables"), "--at", "3", "6"]) == 0
    printed = capsys.readouterr().out
    assert all(head in printed for head in HEADS)
    assert "epochs to 95%" in printed
    rows = list(csv.DictReader((tmp_path / "tables/metrics.csv").open()))
    (row,) = [r for r in rows if (r["head"], r["epoch"], r["metric"]) == ("fixed", "2", "train_nc1")]
    group = group_runs([load_run(run) for run in runs])[1]
    assert float(row["max"]) == pytest.approx(group.values("train_nc1")[:, 1].max(), rel=1e-6)
    assert row["runs"] == "2"
    accuracy = (tmp_path / "tables/accuracy.md").read_text()
    assert "| head | top-1 % at epoch 3 | top-1 % at epoch 6 |" in accuracy
    assert len(list((tmp_path / "tables").iterdir())) == 7


def test_formats() -> None:
    table = [["head", "NC1"], ["implicit_a", "5 (4–never)"]]
    assert as_markdown(table) == "| head | NC1 |\n|---|---|\n| implicit_a | 5 (4–never) |\n"
    assert r"implicit\_a & 5 (4--$\infty$) \\" in as_latex(table)


def test_words_say_what_the_numbers_do(runs: list[str]) -> None:
    learned, _, implicit = groups = group_runs([load_run(run) for run in runs])
    assert "never 95 %" not in verdict(implicit)
    assert re.search(r"collapsed to within 0\.01 of a common simplex ETF since epoch \d", verdict(implicit))
    assert "collapsed to within 0.2 of" in verdict(learned)
    assert comparison(groups).index("implicit") < comparison(groups).index("learned")
    assert len(summary(groups)) == 4


class _Collector(HTMLParser):
    """Elements that could reach outside the file, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "figure"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            local = (value or "").startswith(("#", "data:"))
            if tag == "script" or (name in ("src", "href", "xlink:href", "srcset") and not local):
                self.outside.append(f"{tag} {name}={value}")


def test_page_is_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    collector = _Collector()
    collector.feed(text)
    assert collector.outside == []
    assert len(collector.ids) == len(set(collector.ids))
    assert collector.figures == FIGURES
    assert "@import" not in text
    assert "a &lt;test&gt; device" in text
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".svg", ".png"}
    assert len(list((page.parent / "figures").iterdir())) == 2 * collector.figures


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    """No console error, no request leaves the file, nothing wider than the window, every figure drawn."""
    probe = """<script>addEventListener("load", () => {
      const drawn = [...document.querySelectorAll("figure svg")].map(svg => {
        const box = svg.getBoundingClientRect(), ink = svg.getBBox();
        return box.width > 200 && box.height > 100 && ink.width > 100 && box.right <= innerWidth; });
      const asked = performance.getEntriesByType("resource").map(entry => entry.name);
      document.documentElement.setAttribute("data-probe", JSON.stringify({
        drawn, asked, overflow: document.documentElement.scrollWidth > innerWidth })); });</script>"""
    copy = tmp_path / "probed.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", copy.as_uri()]
    browser = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r"data-probe=\"([^\"]*)\"", browser.stdout)
    assert match is not None
    seen = json.loads(match.group(1).replace("&quot;", '"'))
    assert seen["drawn"] == [True] * FIGURES
    assert [name for name in seen["asked"] if not name.startswith("data:")] == []
    assert not seen["overflow"]
    assert "CONSOLE" not in browser.stderr


@pytest.mark.parametrize("num_classes", [2, 13])
def test_any_number_of_classes(num_classes: int, tmp_path: Path) -> None:
    run = write_run(tmp_path, "implicit", 0, epochs=2, num_classes=num_classes)
    assert main([str(run), "--to", str(tmp_path / "report.html")]) == 0
    assert "implicit: class means" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_picture(runs: list[str], tmp_path: Path) -> None:
    assert main([*runs, "--to", str(tmp_path / "report.png")]) == 0
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_cannot_be_measured_is_said_to_be_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, "learned", 0)
    (run / "measured-last.npz").unlink()
    assert main([str(run), "--to", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "learned: geometry not drawn" in text
    assert "Top-1 accuracy" in text


def test_bad_use_is_one_line(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_run(tmp_path, "fixed", 0)
    (broken / "config.json").write_text("{")
    empty = write_run(tmp_path, "fixed", 1)
    (empty / "metrics.jsonl").write_text("")
    for arguments, message in (
        ([str(tmp_path)], "no run folder"),
        ([str(broken)], "is damaged"),
        ([str(empty)], "no metrics yet"),
        ([runs[0], "--to", str(tmp_path / "report.docx")], "ends in .html"),
        ([runs[0], "--to", str(tmp_path / "absent/report.html")], "there is no folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
