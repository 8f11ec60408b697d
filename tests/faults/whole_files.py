"""Whether the files that a command leaves are whole, and what a run stands for when it is compared with another."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from nearest_etf.common.errors import UserError
from nearest_etf.export import OnnxClassifier
from nearest_etf.torchport.training.measurement import read_measurement
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.reading import read_exact, read_rows, read_run
from tests.faults.good_files import answers
from tests.faults.good_runs import canonical

OF_THE_CLOCK = ("seconds", "images_per_second", "solver_milliseconds")
TEXT_ENDS = {".html": "</html>", ".svg": "</svg>"}


def final_files(folder: Path) -> Iterator[Path]:
    """Files under a final name: neither NAME.tmp nor within a hidden folder, nor a lock."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and path.suffix != ".tmp" and not any(part.startswith(".") for part in parts):
            yield path


def check_whole(folder: Path, apart: bool = False) -> list[str]:
    """What is wrong with the final files of a folder; with `apart` a model may lie beside the sidecar of another."""
    problems = []
    for path in final_files(folder):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # a line that was cut short
                read_whole(path)
        except UserError as error:
            if not (apart and "belongs to another file" in str(error)):
                problems.append(f"{path.relative_to(folder)}: {error}")
        except Exception as error:
            problems.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return problems


def read_whole(path: Path) -> None:
    """Read a file as its reader does; an error if it is not whole."""
    if path.suffix == ".pt":
        load_checkpoint(path, resuming=True)
    elif path.name == "config.json":
        read_run(path.parent, need_rows=False)
    elif path.name == "recalibrated.json":
        read_exact(path.parent)
    elif path.suffix == ".jsonl":
        read_rows(path.parent)
    elif path.suffix == ".npz":
        read_measurement(path)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".onnx":
        OnnxClassifier(path, threads=1)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".csv":
        text = path.read_text(encoding="utf-8")
        widths = {len(row) for row in csv.reader(text.splitlines())}
        if not text.endswith("\n") or len(widths) != 1:
            raise ValueError(f"rows of {sorted(widths)} fields")
    else:
        text = path.read_text(encoding="utf-8")
        expected = TEXT_ENDS.get(path.suffix, "\n")
        if not (text if expected == "\n" else text.rstrip()).endswith(expected):
            raise ValueError(f"it ends in {text[-20:]!r}")


def stands_for(folder: Path) -> dict[str, bytes]:
    """What has to be the same in two folders: weights and all other state, rows, figures, tables; not times."""
    found = {}
    for path in final_files(folder):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            contents = load_checkpoint(path)
            found[name] = canonical(timeless({**contents, "solver": timeless(contents["solver"])}))
        elif path.suffix == ".jsonl":
            found[name] = repr([timeless(row) for row in read_rows(path.parent)]).encode()
        elif path.name == "recalibrated.json":
            found[name] = repr(timeless(read_exact(path.parent))).encode()
        elif path.name == "config.json":
            found[name] = repr(read_run(path.parent, need_rows=False).settings).encode()
        elif path.suffix == ".npz":
            saved = read_measurement(path)
            arrays = {key: array.tobytes() for key, array in saved.arrays.items()}
            found[name] = repr((saved.epoch, saved.figures, arrays)).encode()
        elif path.suffix == ".onnx":
            found[name] = answers(OnnxClassifier(path, threads=1))
        elif path.suffix == ".json" or path.name in ("log.txt", "curves.png", "metrics.csv"):
            found[name] = b"whole"  # they hold times
        else:
            found[name] = path.read_bytes()
    return found


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics, or a checkpoint, without what the clock says."""
    return {name: value for name, value in row.items() if name not in OF_THE_CLOCK}
