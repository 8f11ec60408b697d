"""A small run of every kind of file that a run folder holds, and the readers that they go through."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from nearest_etf.common.errors import UserError
from nearest_etf.torchport.training import progress
from nearest_etf.torchport.training import train as loop
from nearest_etf.torchport.training.measurement import Measurement, read_measurement, save_measurement
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint, save_checkpoint
from nearest_etf.torchport.training.run.reading import read_exact, read_rows, read_run
from nearest_etf.torchport.training.run.settings import Settings, load_recipe, recipe_text, settings_from
from tests.faults.good_files import Folder, Kind

FIXTURES = Path(__file__).parents[1] / "fixtures" / "written-by-0.1.0"
# Three epochs of one step, with everything that a checkpoint may hold.
TINY = Settings(
    data="ufm", num_classes=3, samples_per_class=2, batch_size=6, num_features=4, epochs=3, lr=0.05, model_ema=True
)


def run_kinds() -> dict[str, Kind]:
    """Every kind of file of a run by its name."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        with plainly():
            loop.train(TINY, run, device="cpu", quiet=True)
        arrays = {"weight": np.eye(3), "singular_values": np.ones(2)}
        save_measurement(run, "last", Measurement(3, {"train_loss": 0.5, "train_accuracy": 1.0}, arrays))
        files = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    lines = files["metrics.jsonl"].splitlines(keepends=True)
    last = load_from(files["last.pt"])
    unsealed = json.loads(files["config.json"])
    del unsealed["seal"]
    skeleton, tensors = split_tensors({**last, "epoch": 2})
    values = {name: value for name, value in TINY.to_dict().items() if value is not None and name != "recipe"}
    old = (FIXTURES / "implicit-run" / "last.pt").read_bytes()
    config = {"config.json": files["config.json"]}

    def resumed(folder: Path) -> bytes:
        """Go on from a checkpoint that holds other values, under a seal of its own."""
        text = (folder / "last.json").read_text(encoding="utf-8", errors="surrogateescape")
        run = folder / "run"
        run.mkdir()
        try:
            for name in ("config.json", "metrics.jsonl"):
                (run / name).write_bytes(files[name])
            try:
                contents = join_tensors(written(text), tensors)
            except RecursionError as error:
                raise UserError("no case") from error
            if not isinstance(contents, dict):
                raise UserError("no case")
            save_checkpoint(run / "last.pt", contents)
            with plainly():
                return repr(loop.train(TINY, run, resume=True, device="cpu", quiet=True)).encode()
        finally:
            shutil.rmtree(run)

    def one_row(folder: Path) -> bytes:
        row = folder / "row.json"
        (folder / "metrics.jsonl").write_bytes(lines[0] + row.read_bytes().rstrip(b"\n") + b"\n")
        try:
            return repr(read_rows(folder)).encode()
        finally:
            (folder / "metrics.jsonl").unlink()

    def recipe_of_values(folder: Path) -> bytes:
        found = written((folder / "recipe.json").read_text(encoding="utf-8", errors="surrogateescape"))
        named = found.items() if isinstance(found, dict) else [("value", found)]
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in named)
        (folder / "recipe.toml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            return repr(load_recipe(str(folder / "recipe.toml"))).encode()
        finally:
            (folder / "recipe.toml").unlink()

    return {
        "checkpoint": Kind([{"last.pt": files["last.pt"]}, {"last.pt": files["recalibrated.pt"]}], checkpoint, True),
        "checkpoint of 0.1.0": Kind([{"last.pt": old}], checkpoint, sealed=True),
        "checkpoint's values": Kind([{"last.json": as_json(skeleton)}], resumed, is_json=True),
        "config.json": Kind([config], settings, sealed=True, is_json=True),
        "config.json by hand": Kind([{"config.json": json.dumps(unsealed).encode()}], settings, is_json=True),
        # Of a file that is cut, whole lines stay; of the last sample none does.
        "metrics.jsonl": Kind(
            [{"metrics.jsonl": data} for data in (*(b"".join(lines[:n]) for n in (3, 2, 1)), b"{}")], rows, sealed=True
        ),
        "row of metrics.jsonl": Kind([{"row.json": lines[1]}], one_row, is_json=True),
        "recalibrated.json": Kind(
            [{"recalibrated.json": files["recalibrated.json"]}], lambda f: repr(read_exact(f)).encode(), True, True
        ),
        "measured cache": Kind([{"measured-last.npz": files["measured-last.npz"]}], cache, sealed=True),
        "recipe": Kind([{"recipe.toml": recipe_text(n).encode()} for n in ("digits", "photos")], recipe),
        "recipe's values": Kind([{"recipe.json": as_json(values)}], recipe_of_values, is_json=True),
    }


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Runs that ask neither git nor matplotlib, which take longer than they do, nor threads, which a fork has not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.object(progress, "draw_curves", lambda *_: ""), patch.object(loop, "provenance", lambda _: {}):
            yield
    finally:
        torch.set_num_threads(threads)


def checkpoint(folder: Path) -> bytes:
    return canonical(load_checkpoint(folder / "last.pt", resuming=True))


def settings(folder: Path) -> bytes:
    run = read_run(folder, need_rows=False)
    found = settings_from(run.settings), run.seed, run.data_name, run.class_names, run.checkpoints, run.result
    again = load_recipe(str(folder / "config.json"))
    used = {name: run.config.get(name) for name in ("settings", "data", "provenance")}  # "seal" may be misspelt
    return repr((found, again, used)).encode()


def rows(folder: Path) -> bytes:
    return repr(read_rows(folder)).encode()


def cache(folder: Path) -> bytes:
    found = read_measurement(folder / "measured-last.npz")
    return repr((found.epoch, found.figures, {name: array.tobytes() for name, array in found.arrays.items()})).encode()


def recipe(folder: Path) -> bytes:
    return repr(load_recipe(str(folder / "recipe.toml"))).encode()


def load_from(contents: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "last.pt").write_bytes(contents)
        return load_checkpoint(Path(folder) / "last.pt")


def canonical(value: Any) -> bytes:
    """Bytes that stand for a checkpoint's contents."""
    if isinstance(value, torch.Tensor):
        return repr((value.dtype, value.shape)).encode() + value.detach().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return b"{" + b",".join(repr(key).encode() + b":" + canonical(entry) for key, entry in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(canonical(entry) for entry in value) + b"]"
    return repr(value).encode()


def split_tensors(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """A value as JSON holds it, with numbers for tensors, and these tensors."""
    tensors: list[torch.Tensor] = []

    def split(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        if isinstance(value, dict):
            return {"entries": [[key, split(entry)] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            return [split(entry) for entry in value]
        return value

    return split(value), tensors


def join_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value again; any tensor may have come to stand elsewhere, and what is no checkpoint is no case."""
    try:
        if isinstance(value, dict) and set(value) == {"tensor"}:
            return tensors[value["tensor"] % len(tensors)]
        if isinstance(value, dict) and set(value) == {"entries"}:
            return {key: join_tensors(entry, tensors) for key, entry in value["entries"]}
    except (TypeError, ValueError) as error:
        raise UserError("no case") from error
    return [join_tensors(entry, tensors) for entry in value] if isinstance(value, list) else value


def written(text: str) -> Any:
    """JSON, or no case of this kind."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("no case") from error


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def example(kind: Kind) -> str:
    """What a reader says of a file with a bit flipped in its middle; empty where it does not mind."""
    with tempfile.TemporaryDirectory() as folder:
        sample: Folder = kind.samples[0]
        for file, data in sample.items():
            middle = len(data) // 2
            (Path(folder) / file).write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        try:
            kind.read(Path(folder))
        except UserError as error:
            return str(error).replace(folder + os.sep, "")
        return ""
