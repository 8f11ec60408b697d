"""The folder that a run leaves behind: settings, provenance, a line of metrics per epoch, checkpoints.

config.json     settings, data, versions, hardware
metrics.jsonl   one JSON object per epoch
metrics.csv     the same as a table, and curves.png as a picture, written when the run ends or is stopped
tensorboard/    the same again, where TensorBoard is installed
log.txt         what was printed
last.pt         everything needed to go on from where the run stopped
best.pt         the same at the best test accuracy so far
recalibrated.*  on request: the model with exact class means, and its figures beside the running ones
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch

from ..curves import draw_curves, scalar_writer, tag
from ..data import ImageData
from .settings import Settings, SettingsError, settings_from

Row = dict[str, float]
PACKAGES = ("nearest-etf", "torch", "numpy", "scipy", "torchvision", "timm")  # on which figures depend


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers and crashes find the old contents or the new ones, never half of them."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class RunFolder:
    """A run folder.  Making the object only looks whether it may be used; `begin` makes the folder.

    A context manager: however the run ends, table and curves are written from the metrics that there are. Of
    several processes only the first one begins, and so writes.

    Raises
    ------
    SettingsError
        If the folder exists and neither `resume` nor `overwrite` says what to do with it (it is left
        untouched), if there is nothing to resume, or if the run in it had other settings.
    """

    def __init__(self, path: str | Path, settings: Settings, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = Path(path)
        taken = self.path.exists() and (not self.path.is_dir() or any(p.suffix != ".tmp" for p in self.path.iterdir()))
        self.resumed = resume and (self.path / "last.pt").exists()
        if resume and (self.path / "config.json").exists():
            saved = read_settings(self.path)
            for name, value in settings.to_dict().items():
                if value != getattr(saved, name):
                    raise SettingsError(
                        f"{self.path} was trained with {name} = {getattr(saved, name)!r}, not {value!r}: "
                        "resume with the same settings, or start a run in another folder"
                    )
        elif resume:
            raise SettingsError(f"{self.path} holds no run to resume (no config.json in it)")
        elif taken and not overwrite:
            raise SettingsError(
                f"{self.path} exists: choose another --output, go on with it (--resume) or replace it (--overwrite)"
            )
        elif taken and not (self.path / "config.json").is_file():
            raise SettingsError(f"{self.path} is no run folder (no config.json in it): not overwritten")
        self._replace = taken and overwrite and not resume
        self._begun = False
        self._scalars: Any = None

    def begin(self) -> None:
        """Make the folder, in place of an earlier run where that was asked for."""
        if self._replace:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._scalars is not None:
            self._scalars.close()
        if not self._begun or not (rows := read_rows(self.path)):
            return
        self.write_table(rows)
        trouble = draw_curves(rows, self.path / "curves.png")
        if trouble:
            self.log(trouble)

    def write_config(self, settings: Settings, data: ImageData, device: torch.device) -> None:
        """Write config.json: all that defines the run, and where it was made."""
        config = {
            "settings": settings.to_dict(),
            "data": {
                "name": data.name,
                "class_names": data.class_names,
                "image_shape": data.image_shape,
                "mean": data.mean,
                "std": data.std,
                "train_size": len(data.train),
                "test_size": len(data.test),
                "train_sha256": data.train.fingerprint(),
                "test_sha256": data.test.fingerprint(),
            },
            "provenance": provenance(device),
        }
        write_whole(self.path / "config.json", json.dumps(config, indent=2) + "\n")

    def truncate(self, epochs: int) -> None:
        """Forget the metrics of epochs after the first `epochs`: the checkpoint does not know them."""
        rows = [row for row in read_rows(self.path) if row["epoch"] <= epochs]
        write_whole(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self._scalars = scalar_writer(self.path / "tensorboard", epochs + 1)

    def append(self, row: Row) -> None:
        """Add the metrics of an epoch."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._scalars is not None:
            for name in row.keys() - {"epoch"}:
                self._scalars.add_scalar(tag(name), row[name], int(row["epoch"]))
            self._scalars.flush()

    def write_table(self, rows: list[Row]) -> None:
        """Write metrics.csv."""
        table = io.StringIO()
        writer = csv.DictWriter(table, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / "metrics.csv", table.getvalue())

    def write_recalibrated(self, running: Row, exact: Row) -> None:
        """Write recalibrated.json: the figures with running and with exact class means, side by side."""
        write_whole(self.path / "recalibrated.json", json.dumps({"running": running, "exact": exact}, indent=2) + "\n")

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")


def read_settings(run: str | Path) -> Settings:
    """Settings of an existing run, from its config.json."""
    path = Path(run) / "config.json"
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return settings_from(config["settings"])
    except FileNotFoundError:
        raise SettingsError(f"{run} is no run folder: it has no config.json") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is damaged: expected JSON with the settings of a run ({error})") from None


def read_rows(run: str | Path) -> list[Row]:
    """Metrics of a run, an entry per epoch; a line that a crash cut short is left out."""
    path = Path(run) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def epochs_to(rows: list[Row], train_accuracy: float) -> int | None:
    """The first epoch whose measured training accuracy reaches a level, or None.

    >>> epochs_to([{"epoch": 1, "train_accuracy": 0.9}, {"epoch": 2, "train_accuracy": 0.96}], 0.95)
    2
    """
    reached = (int(row["epoch"]) for row in rows if row.get("train_accuracy", 0.0) >= train_accuracy)
    return next(reached, None)


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, commit, command and hardware."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    installed = {distribution.name for distribution in metadata.distributions()}
    return {
        "command": sys.argv,
        "commit": commit.stdout.strip() or None,
        "versions": {name: metadata.version(name) for name in PACKAGES if name in installed},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def processor() -> str:
    """The CPU's model; Linux says it in a file, other systems by way of `platform`."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine() or "cpu")
