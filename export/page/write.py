"""The page as a file: template, style, scripts, runtime and model in one HTML file.

The page has no network access. Its content security policy allows only its own scripts and style, by their SHA-256,
WebAssembly, and images of the user.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ...common.files import reading, write_file
from ..errors import ModelFileError
from ..model_file import WITH_COSINES, read_model
from ..predict import OnnxClassifier
from .runtime import LARGEST_OPSET, VERSION, PageError, fetch_runtime

SCRIPTS = ("photo.js", "network.js", "drawing.js", "page.js")
LARGEST_DRAWING = 64  # pixels: a page for greyscale images up to this side has a sheet to draw on
ETF_ERROR = 1e-3  # largest etf_error for which the page calls the rows of W the vertices of a simplex ETF


@dataclass(frozen=True)
class PageReport:
    """The path of a written page, and its size in bytes, with those of the model and the runtime in it."""

    path: Path
    size: int
    model: int
    runtime: int

    def __str__(self) -> str:
        megabytes = [f"{size / 1e6:.2f} MB" for size in (self.size, self.model, self.runtime)]
        return (
            f"wrote {self.path} ({megabytes[0]}: model {megabytes[1]}, onnxruntime-web {VERSION} {megabytes[2]}); "
            "open it in a browser"
        )


def check_page(path: str | os.PathLike[str], overwrite: bool = False, opset: int | None = None) -> Path:
    """The path of a page, after checking that it can be written, for a model with this opset.

    Raises
    ------
    PageError
        If the suffix is not .html, the folder does not exist or is read-only, the path is a folder, or exists and
        `overwrite` is false, or onnxruntime-web does not support the opset.

    Examples
    --------
    >>> check_page("demo.htm")
    Traceback (most recent call last):
    ...
    nearest_etf.export.page.runtime.PageError: demo.htm: expected a file that ends in .html
    """
    path = Path(path)
    if path.suffix != ".html":
        raise PageError(f"{path}: expected a file that ends in .html")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise PageError(f"{path} cannot be written: {path.parent} is not a writable folder")
    if path.is_dir():
        raise PageError(f"{path} is a folder")
    if path.exists() and not overwrite:
        raise PageError(f"{path} exists: choose another name, or replace it by --overwrite")
    if opset is not None and opset > LARGEST_OPSET:
        raise PageError(
            f"opset is {opset}: onnxruntime-web {VERSION}, which the page needs, supports at most {LARGEST_OPSET}"
        )
    return path


def write_page(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
) -> PageReport:
    """Write one HTML page that classifies images with a model, in the browser and offline.

    Parameters
    ----------
    model : path
        An ONNX file that `etf-export` or `export_onnx` wrote.
    path : path
        Ends in `.html`.
    data_dir : path, optional
        Folder of onnxruntime-web, also for its download. Default: `NEAREST_ETF_DATA`, or the user's cache folder.
    overwrite : bool
        Replace an existing page.

    Raises
    ------
    ModelFileError
        If the model cannot be read.
    PageError
        If the model takes features or has an unsupported opset, the page cannot be written, or onnxruntime-web cannot
        be downloaded.
    """
    path = check_page(path, overwrite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model without a sidecar
        classifier = OnnxClassifier(model, threads=1)
    if classifier.image_shape is None:
        raise PageError(f"{model} takes features: a page needs a model that takes images")
    data, _ = read_model(Path(model))
    opset = max(entry.version for entry in onnx.load_model_from_string(data).opset_import)
    check_page(path, overwrite, opset)
    with reading(model, "a model that etf-export wrote", ModelFileError):
        about, words = described(classifier)
    runtime = fetch_runtime(data_dir)
    blocks = {"model": packed(data + WITH_COSINES), "runtime": packed(runtime.program)}
    page = render(about, words, blocks, runtime.script)
    write_file(path, page)
    runtime_size = len(blocks["runtime"]) + len(runtime.script)
    return PageReport(path, len(page.encode("utf-8")), len(blocks["model"]), runtime_size)


def described(classifier: OnnxClassifier) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of a model for the page's scripts, and the variables of its template."""
    metadata, names = classifier.metadata, classifier.class_names
    height, width, channels = shape = classifier.image_shape or (0, 0, 0)
    vertices, other_cosine = _vertices(metadata, len(names))
    about = {
        "class_names": names,
        "image_shape": shape,
        "input": metadata["input"],
        "preprocessing": metadata["preprocessing"],
        "transform": None if classifier.transform is None else classifier.transform.to_dict(),
        "vertices": vertices,
        "other_cosine": other_cosine,
        "ood": classifier.ood,
    }
    draws = channels == 1 and max(height, width) <= LARGEST_DRAWING
    words = {
        "title": "Draw, and see it classified" if draws else "Choose a photo, and see it classified",
        "subtitle": _subtitle(metadata, names),
        "draws": draws,
        "view": f"{width}×{height} pixels, {'greyscale' if channels == 1 else 'in colour'}.",
        "caption": picture_caption(vertices, other_cosine, len(names)),
        "licence": metadata.get("licence"),
    }
    return about, words


def render(about: dict[str, Any], words: dict[str, Any], blocks: dict[str, str], runtime_script: str) -> str:
    """The page's text."""
    style = _read("page.css")
    scripts = [runtime_script, *(_read(name) for name in SCRIPTS)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("page.html.jinja")).render(
        **words,
        policy=Markup(_policy(style, scripts)),
        version=__version__,
        runtime_name=f"onnxruntime-web {VERSION}",
        style=Markup(style),
        blocks=[(name, Markup(text)) for name, text in blocks.items()],
        about=Markup(as_data(about)),
        scripts=[Markup(script) for script in scripts],
    )


def packed(data: bytes) -> str:
    """Bytes as gzip in base64; equal bytes give equal text."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def as_data(value: Any) -> str:
    """JSON for a script element, without characters of HTML markup.

    >>> as_data("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _policy(style: str, scripts: list[str]) -> str:
    """The content security policy of the page."""

    def sums(*texts: str) -> str:
        digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {sums(*scripts)} 'wasm-unsafe-eval'",
            f"style-src {sums(style)}",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _vertices(metadata: dict[str, Any], num_classes: int) -> tuple[str, float]:
    """A name for the rows of W, and the cosine of a fully collapsed feature to those of the other classes."""
    if metadata["certificate"]["etf_error"] <= ETF_ERROR:
        return "the vertices of the simplex ETF", -1 / (num_classes - 1)
    return "the rows of the classifier W", 0.0


def picture_caption(vertices: str, other_cosine: float, num_classes: int) -> str:
    """The caption of the picture of the cosines.

    >>> picture_caption("the rows of W", 0.0, 100)[:72]
    "Cosines between the image's feature and the rows of W; the ten largest. "
    """
    ring = f"−1/{num_classes - 1}, where the other classes lie at full collapse" if other_cosine else "0"
    which = "" if num_classes <= 12 else "; the ten largest"
    return (
        f"Cosines between the image's feature and {vertices}{which}. The outer circle is 1, the middle −1, and the "
        f"dotted circle {ring}."
    )


def _subtitle(metadata: dict[str, Any], class_names: tuple[str, ...]) -> str:
    facts = [str(metadata["backbone"])] if metadata.get("backbone") else []
    facts += [f"{metadata['head']['kind']} head", f"{len(class_names)} classes", str(metadata["precision"])]
    accuracy = metadata.get("test_accuracy")
    right = "" if accuracy is None else f" Its test accuracy is {100 * accuracy:.1f} %."
    trained = f"A network trained on {metadata['data']}" if metadata.get("data") else "A network"
    return f"{trained} ({', '.join(facts)}).{right}"
