"""The page and the picture: complete, self-contained, escaped, and right in a real browser."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from nearest_etf.torchport.training.etf_report import main
from nearest_etf.torchport.training.report.style import save

OLD_RUNS = Path(__file__).parents[3] / "fixtures" / "written-by-0.1.0"
FIGURES = 23  # 9 curves, 3 confusions, 2 distributions, 3 Gram matrices, 3 views of class means, 3 of the solver
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "report.html"
    assert main([*runs, "--to", str(target), "--figures", str(target.parent / "figures")]) == 0
    return target


class _Collector(HTMLParser):
    """External references, ids, and elements that are not closed properly."""

    VOID = ("meta", "link")

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "figure"
        if tag not in self.VOID:
            self.open.append(tag)
        self.look(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.look(tag, attributes)  # only SVG has these

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def look(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            local = (value or "").startswith(("#", "data:"))
            if tag == "script" or (name in ("src", "href", "xlink:href", "srcset") and not local):
                self.outside.append(f"{tag} {name}={value}")


def collected(page: Path) -> _Collector:
    """A parsed page, checked for external references, duplicate ids and unclosed elements."""
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>\n<html lang=")
    collector = _Collector()
    collector.feed(text)
    collector.close()
    assert collector.outside == []
    assert len(collector.ids) == len(set(collector.ids))
    assert collector.open == collector.unbalanced == []
    return collector


def test_page_is_self_contained(page: Path) -> None:
    text, collector = page.read_text(encoding="utf-8"), collected(page)
    assert collector.figures == FIGURES
    assert "@import" not in text
    assert "a &lt;test&gt; device" in text
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".svg", ".png"}
    assert len(list((page.parent / "figures").iterdir())) == 2 * collector.figures


def test_page_escapes_all_names(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Names of runs, settings, classes and data sets are plain text, whatever they contain."""
    hostile = """<script>alert("a")</script> & '$x^2$"""
    run = write_run(tmp_path / "a & <b>", "implicit", 0, epochs=2)
    config = json.loads((run / "config.json").read_text())
    config["settings"] |= {"backbone": hostile, "recipe": hostile, "head": hostile}
    config["data"] = {"name": hostile, "class_names": [hostile, "$a$", "{{ 1 }}", "é"]}
    config["provenance"]["device"] = hostile
    (run / "config.json").write_text(json.dumps(config))
    target = tmp_path / "report.html"
    assert main([str(run), "--to", str(target), str(tmp_path / "report.png")]) == 0
    collected(target)
    text = target.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "Neural collapse on &lt;script&gt;" in text
    assert "a &amp; &lt;b&gt;" in text
    assert "{{ 1 }}" in text
    assert "$a$" in text  # no mathematics


@pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("train", "test"), ("train", "val", "test")])
def test_any_set_of_splits(splits: tuple[str, ...], write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Lines for training data and one held-out split: test, else validation."""
    run = write_run(tmp_path, "learned", 0, splits=splits)
    assert main([str(run), "--to", str(tmp_path / "report.html"), str(tmp_path / "report.svg")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("dashed on test data" in text) == ("test" in splits)
    assert ("dotted on validation data" in text) == ("val" in splits and "test" not in splits)
    assert "geometry not drawn" not in text


def test_runs_of_version_0_1_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read, measured again if the stored measurement has the old format, and drawn."""
    heads = ("fixed", "implicit")
    for head in heads:
        shutil.copytree(OLD_RUNS / f"{head}-run", tmp_path / head)
    os.utime(tmp_path / "implicit" / "last.pt", (0, 0))
    assert main([*(str(tmp_path / head) for head in heads), "--to", str(tmp_path / "report.html")]) == 0
    printed = capsys.readouterr().out
    assert "measured-last.npz has format 1: expected 2; measured again" in printed
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "geometry not drawn" not in text
    assert "Singular values of A" in text
    assert "optimizer" in text
    assert "optimiser" not in text
    collected(tmp_path / "report.html")


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
def test_any_number_of_classes(write_run: Callable[..., Path], num_classes: int, tmp_path: Path) -> None:
    run = write_run(tmp_path, "implicit", 0, epochs=2, num_classes=num_classes)
    assert main([str(run), "--to", str(tmp_path / "report.html")]) == 0
    assert "implicit: class means" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_picture(runs: list[str], tmp_path: Path) -> None:
    assert main([*runs, "--to", str(tmp_path / "report.png")]) == 0
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_cannot_be_measured_is_named_with_the_reason(write_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run(tmp_path, "learned", 0)
    (run / "measured-last.npz").unlink()
    assert main([str(run), "--to", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "learned: geometry not drawn" in text
    assert "Top-1 accuracy" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_letters_that_the_font_lacks_are_escaped_where_it_draws(
    kind: str, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path, "implicit", 0, data={"class_names": ["猫", "犬", "cat", "dog"]})
    words = [str(run), "--labels", "猫と犬", "--to", str(tmp_path / f"report.{kind}"), str(tmp_path / "page.html")]
    assert main([*words, "--figures", str(tmp_path / "figures"), "--quiet"]) == 0
    if kind == "svg":
        assert "猫と犬" in (tmp_path / "report.svg").read_text()
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("猫 τ")
    axes.set_xticks([0, 1], ["猫", "dog"])
    save(figure, io.BytesIO(), kind)
    found = [axes.get_title(), *(label.get_text() for label in axes.get_xticklabels())]
    assert found == (["猫 τ", "猫", "dog"] if kind == "svg" else ["\\u732b τ", "\\u732b", "dog"])
