"""Write a run folder: settings, provenance, a line of metrics per epoch, checkpoints.

config.json     settings, data, versions, hardware
metrics.jsonl   one JSON object per epoch, with the CRC-32 of it and of those before it
metrics.csv     the same as a table, written when the run ends or is stopped
curves.png      the same as a picture, and tensorboard/ if TensorBoard is installed (not written here)
log.txt         the printed lines
last.pt         everything needed to resume the run where it stopped
best.pt         the same at the best validation accuracy, if there are validation data
recalibrated.*  the model with exact class means, and its metrics beside those with running means
.lock           the name of the process that writes, while it does

`reading.py` reads the folder. Needs no torch.
"""

from __future__ import annotations

import csv
import io
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ....common.files import append_line, remove_leftovers, write_file, write_json
from ....common.seals import sealed_line
from .data_path import data_folder
from .lock import LOCK, FolderLock
from .reading import FORMAT, Row, RunError, check_run_folder, read_rows, read_run, rows_and_sum
from .settings import Settings, SettingsError, settings_from

RESUMABLE = ("epochs", "workers", "data")  # may change in a resumed run: more epochs, workers, the location of a folder


def refused_changes(saved: Settings, wanted: Settings) -> list[str]:
    """Names of changed settings with which a run cannot resume.

    >>> refused_changes(Settings(epochs=3, lr=0.1), Settings(epochs=4, lr=0.2, workers=0))
    ['lr']
    """
    changed = [name for name, value in wanted.to_dict().items() if value != getattr(saved, name)]
    folders = [data_folder(settings.data) is not None for settings in (saved, wanted)]
    allowed = {
        "workers": True,
        "epochs": wanted.epochs > saved.epochs,
        "data": all(folders),
        "image_size": wanted.image_size is None or not any(folders),  # stored in the checkpoint
    }
    return [name for name in changed if not allowed.get(name, False)]


class RunFolder:
    """A run folder. The constructor only validates; `begin` creates the folder.

    A context manager: on exit the table is written from the metrics so far, however the run ends. Of several processes
    only the first calls `begin` and writes; from then on the folder is locked for other runs.

    Attributes
    ----------
    resumed : bool
        Whether the run continues from a checkpoint.
    replacing : bool
        Whether an earlier run is set aside, which returns if this one ends without a checkpoint.

    Raises
    ------
    SettingsError
        If the folder exists without `resume` or `overwrite`, or if a setting outside `RESUMABLE` has changed; the
        folder is unchanged.
    RunError
        If the folder to resume or to overwrite holds no run, or the one to resume has lost last.pt, or another process
        writes to it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with RunFolder(f"{parent}/run", Settings()) as folder:
    ...         _ = folder.begin()
    ...         folder.write_config(Settings(), {"name": "digits"}, {})
    ...         folder.append({"epoch": 1, "train_loss": 0.5})
    ...     run = read_run(f"{parent}/run")
    >>> run.data_name, run.rows
    ('digits', [{'epoch': 1, 'train_loss': 0.5}])
    """

    def __init__(self, path: str | Path, settings: Settings, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.lock = FolderLock(self.path)
        self.lock.look()
        self._found = self._state()
        taken = self._taken()
        self.resumed = resume and (self.path / "last.pt").exists()
        later = next((name for name in ("best.pt", "recalibrated.pt") if (self.path / name).exists()), "")
        if resume and not self.resumed and later:  # training would begin again, and drop its metrics
            raise RunError(
                f"{self.path / 'last.pt'} is missing, but there is {later}: restore it, or start again (--overwrite)"
            )
        self.saved_settings = settings_from(read_run(self.path, need_rows=False).settings) if resume else settings
        if resume:
            for name in refused_changes(self.saved_settings, settings):
                allowed = "as many or more" if name == "epochs" else "the same"
                raise SettingsError(
                    f"{self.path} was trained with {name} = {getattr(self.saved_settings, name)!r}, not "
                    f"{getattr(settings, name)!r}: resume with {allowed}, or start a run in another folder"
                )
        elif taken and not overwrite:
            raise SettingsError(
                f"{self.path} exists: choose another --output, resume it (--resume) or replace it (--overwrite)"
            )
        elif taken:
            check_run_folder(self.path)  # nothing else is overwritten
        self._aside = self.path.with_name(f"{self.path.name}.replaced")
        self.replacing = overwrite and not resume and (taken or self._has_aside())
        self._tidy = overwrite or resume  # a killed run may have left the run that it replaced
        self._begun = False
        self._sum = 0  # of the lines of metrics.jsonl

    def begin(self) -> list[str]:
        """Create and lock the folder; with `overwrite`, an earlier run is set aside until `replaced`.

        Returns lines for the log.

        Raises
        ------
        RunError
            If another process writes to the folder, or has written to it since the constructor.
        """
        self.lock.look()
        if self._state() != self._found:
            raise RunError(f"another process has written to {self.path} meanwhile: start again")
        if self.replacing:
            if self._has_aside() and not (self.path / "last.pt").is_file():
                shutil.rmtree(self.path, ignore_errors=True)  # of a killed run; the run set aside has a checkpoint
            else:
                self._drop_aside()
                self.path.rename(self._aside)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be created ({error.strerror}): choose another --output") from error
        note = self.lock.take()
        if self._state() != ([] if self.replacing else self._found):
            self.lock.release()
            raise RunError(f"another process has written to {self.path} meanwhile: start again")
        remove_leftovers(self.path)
        self._begun = True
        return [note] if note else []

    def _taken(self) -> bool:
        """Whether the path exists and holds more than leftovers of a killed run."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(path.suffix != ".tmp" and path.name != LOCK for path in self.path.iterdir())

    def _state(self) -> list[tuple[str, int]]:
        """Modification times of the files that a run resumes from."""
        files = [self.path / name for name in ("config.json", "last.pt")]
        return [(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()]

    def replaced(self) -> None:
        """Delete the earlier run, now that the new one has a checkpoint."""
        if self._tidy:
            self._drop_aside()
            self.replacing = self._tidy = False

    def _has_aside(self) -> bool:
        """Whether an earlier run has been set aside."""
        return (self._aside / "config.json").is_file()

    def _drop_aside(self) -> None:
        if self._has_aside():
            shutil.rmtree(self._aside, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._begun and self.replacing:  # without a checkpoint, the earlier run is put back
                self.lock.release()
                shutil.rmtree(self.path)
                self._aside.rename(self.path)
            elif self._begun and (rows := read_rows(self.path)):
                self.write_table(rows)
        finally:
            self.lock.release()

    def write_config(self, settings: Settings, data: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Write config.json: all that defines the run, and where it was trained.

        Parameters
        ----------
        settings : Settings
        data : mapping
            `data.fingerprint.recorded(data)`.
        provenance : mapping
            `common.machine.provenance()`; a resumed run keeps that of its beginning.
        """
        if self.resumed:
            provenance = read_run(self.path, need_rows=False).config.get("provenance", {})
        config = {"format": FORMAT, "settings": settings.to_dict(), "data": data, "provenance": provenance}
        write_json(self.path / "config.json", config)

    def truncate(self, epochs: int) -> None:
        """Drop the metrics of epochs after epoch `epochs`, which are newer than the checkpoint."""
        found, _ = rows_and_sum(self.path)
        rows = [row for row in found if row["epoch"] <= epochs]
        if epochs > 0 and (not rows or rows[-1]["epoch"] < epochs):
            warnings.warn(f"{self.path / 'metrics.jsonl'} lacks the metrics of epoch {epochs}", stacklevel=2)
        lines, self._sum = [], 0
        for row in rows:
            line, self._sum = sealed_line(row, self._sum)
            lines.append(line)
        write_file(self.path / "metrics.jsonl", "".join(lines))

    def append(self, row: Row) -> None:
        """Add the metrics of an epoch."""
        line, self._sum = sealed_line(row, self._sum)
        append_line(self.path / "metrics.jsonl", line, sync=True)  # on the disk before any later checkpoint

    def write_table(self, rows: list[Row]) -> None:
        """Write metrics.csv."""
        table = io.StringIO()
        writer = csv.DictWriter(table, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(self.path / "metrics.csv", table.getvalue())

    def write_recalibrated(self, epoch: int, running: Row, exact: Row) -> None:
        """Write recalibrated.json: the metrics with running and with exact class means, side by side."""
        figures = {"epoch": epoch, "running": running, "exact": exact}
        write_json(self.path / "recalibrated.json", figures)

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        append_line(self.path / "log.txt", text + "\n")
