"""The page as a file: complete, self-contained, escaped; and the command that writes it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

from nearest_etf.export import ModelFileError, OnnxClassifier
from nearest_etf.export.etf_export import main
from nearest_etf.export.model_file import WITH_COSINES
from nearest_etf.export.page import PageError, check_page, write, write_page
from nearest_etf.export.page.runtime import Runtime
from nearest_etf.torchport.training.run.settings import load_recipe
from nearest_etf.torchport.training.train import train


class Contents(HTMLParser):
    """The contents of scripts, styles and data blocks, and all attributes that could reach outside the file."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.held: list[tuple[dict[str, str | None], str]] = []
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.policy, self._inside = "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self._inside = tag in ("script", "style")
        if self._inside:
            self.held.append(({"tag": tag, **given}, ""))
        if "id" in given:
            self.ids.append(given["id"] or "")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self.outside += [f"{tag} {name}={value}" for name, value in attributes if name in ("src", "href", "action")]
        self.outside += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.held[-1]
            self.held[-1] = (attributes, text + data)

    def block(self, name: str) -> str:
        (text,) = (text for attributes, text in self.held if attributes.get("id") == name)
        return text


@pytest.fixture
def small_runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """A short runtime instead of onnxruntime-web."""
    runtime = Runtime("var ort = {};", b"\0asm")
    monkeypatch.setattr(write, "fetch_runtime", lambda _: runtime)
    return runtime


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "float"])
def test_everything_is_in_the_file(name: str, files: dict[str, Path], small_runtime: Runtime, tmp_path: Path) -> None:
    report = write_page(files[name], tmp_path / "demo.html")
    text = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert report.size == len(text.encode("utf-8"))
    assert re.fullmatch(
        r"wrote .*demo\.html \(.* MB: model .* MB, onnxruntime-web 1\.18\.0 0\.00 MB\); .*", str(report)
    )
    found = Contents(text)
    assert found.outside == ["link href=data:,"]
    assert len(found.ids) == len(set(found.ids))
    packed = {name: gzip.decompress(base64.b64decode(found.block(name))) for name in ("model", "runtime")}
    assert packed == {"model": files[name].read_bytes() + WITH_COSINES, "runtime": small_runtime.program}
    assert 'id="sheet"' in text  # 8×8 and greyscale: a sheet to draw on
    about = json.loads(found.block("about"))
    assert about["image_shape"] == [8, 8, 1]
    assert about["input"]["dtype"] == ("float32" if name == "float" else "uint8")
    assert about["other_cosine"] == pytest.approx(-1 / 9)
    assert "the vertices of the simplex ETF" in text
    assert write_page(files[name], tmp_path / "again.html").size == report.size
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_the_policy_allows_the_contents_of_the_file_and_no_network(
    files: dict[str, Path], small_runtime: Runtime, tmp_path: Path
) -> None:
    write_page(files["fp32"], tmp_path / "demo.html")
    found = Contents((tmp_path / "demo.html").read_text(encoding="utf-8"))
    runs = [(attributes, text) for attributes, text in found.held if "type" not in attributes]
    assert [attributes["tag"] for attributes, _ in runs] == ["style", *["script"] * 5]
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in runs]
    scripts = " ".join(f"'sha256-{digest}'" for digest in sums[1:])
    assert found.policy.split("; ") == [
        "default-src 'none'",
        f"script-src {scripts} 'wasm-unsafe-eval'",
        f"style-src 'sha256-{sums[0]}'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_names_are_escaped(colour_model: Path, small_runtime: Runtime, tmp_path: Path) -> None:
    names = OnnxClassifier(colour_model).class_names
    assert names[0] == "</script><script>alert(1)</script>"
    write_page(colour_model, tmp_path / "demo.html")
    text = (tmp_path / "demo.html").read_text(encoding="utf-8")
    found = Contents(text)
    assert json.loads(found.block("about"))["class_names"] == list(names)
    assert text.count("<script") == 2 + 1 + 5  # model and runtime, data, scripts
    assert "Model: &lt;/script&gt;" in text
    assert "trained on &lt;/script&gt;" in text
    assert 'id="sheet"' not in text  # in colour: a file input


def test_unusable_models_and_paths_are_refused(files: dict[str, Path], small_runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="takes features: a page needs a model that takes images"):
        write_page(files["head-fp32"], tmp_path / "demo.html")
    with pytest.raises(ModelFileError, match="is missing"):
        write_page(tmp_path / "model.onnx", tmp_path / "demo.html")
    with pytest.raises(PageError, match=r"expected a file that ends in \.html"):
        check_page(tmp_path / "demo.txt")
    with pytest.raises(PageError, match="is not a writable folder"):
        check_page(tmp_path / "nowhere" / "demo.html")
    with pytest.raises(
        PageError, match=r"opset is 22: onnxruntime-web 1\.18\.0, which the page needs, supports at most 21"
    ):
        check_page(tmp_path / "demo.html", opset=22)
    newer = onnx.load(files["fp32"])
    newer.opset_import[0].version = 22
    onnx.save(newer, tmp_path / "newer.onnx")
    with pytest.raises(PageError, match="opset is 22"):
        write_page(tmp_path / "newer.onnx", tmp_path / "demo.html")
    bare = onnx.load(files["fp32"])
    stated = json.loads(bare.metadata_props[0].value)
    del stated["certificate"]
    bare.metadata_props[0].value = json.dumps(stated)
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(ModelFileError, match=r"bare\.onnx is damaged or of another kind \(KeyError: 'certificate'\)"):
        write_page(tmp_path / "bare.onnx", tmp_path / "demo.html")
    (tmp_path / "demo.html").mkdir()
    with pytest.raises(PageError, match="is a folder"):
        check_page(tmp_path / "demo.html")
    (tmp_path / "old.html").write_text("old")
    with pytest.raises(PageError, match="exists: choose another name, or replace it by --overwrite"):
        write_page(files["fp32"], tmp_path / "old.html")
    write_page(files["fp32"], tmp_path / "old.html", overwrite=True)
    assert (tmp_path / "old.html").stat().st_size > 1000


def test_the_command_writes_the_model_even_if_it_cannot_write_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model, page = tmp_path / "run", tmp_path / "model.onnx", tmp_path / "demo.html"
    train(load_recipe("digits", {"head": "implicit", "epochs": 1, "num_features": 32}), run)
    capsys.readouterr()
    words = [str(run), "--to", str(model), "--page", str(page), "--check-images", "20"]

    def nowhere(_: object) -> Runtime:
        raise PageError("onnxruntime-web could not be fetched")

    monkeypatch.setattr(write, "fetch_runtime", nowhere)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith(f"wrote {model} and ")
    assert err == "etf-export: onnxruntime-web could not be fetched\n"
    assert model.exists()
    assert not page.exists()

    monkeypatch.setattr(write, "fetch_runtime", lambda _: Runtime("var ort = {};", b"\0asm"))
    assert main([*words, "--overwrite"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {page} (")
    assert main([*words, "--overwrite", "--head-only"]) == 2
    assert "leave out one of --head-only and --page" in capsys.readouterr().err
