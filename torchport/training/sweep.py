"""`etf-train sweep`: one recipe with several heads and seeds, one run after the other in one process.

    etf-train sweep digits --heads learned fixed implicit --seeds 3 --output runs/demo

Runs go to OUTPUT/HEAD-seedN. Finished runs are skipped, interrupted ones resumed; a failure does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.command import printer
from ...common.errors import UserError
from .data.worker import needing_workers
from .run.checkpoint import load_checkpoint
from .run.data_path import located
from .run.folder import refused_changes
from .run.reading import read_exact, read_run
from .run.settings import FOLLOWS_MEANS, Settings, SettingsError, settings_from
from .train import train


def sweep(
    runs: Sequence[Settings],
    output: str | Path,
    *,
    overwrite: bool = False,
    recalibrate: bool | None = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, str]:
    """Train several runs.

    Parameters
    ----------
    runs : sequence of Settings
        No two with the same head and seed.
    output : path
        Folder of the run folders.
    overwrite : bool
        Replace existing runs.
    recalibrate : bool, optional
        As for `train`; ignored for heads that do not follow class means.
    quiet : bool
        Print nothing.
    options
        As for `train`: data_dir, device.

    Returns
    -------
    dict
        For each run "done", "done before", or the error that ended it.
    """
    log = printer(quiet)
    outcomes: dict[str, str] = {}
    for settings in runs:
        name = f"{settings.head}-seed{settings.seed}"
        folder = Path(output) / name
        exact = recalibrate if settings.head in FOLLOWS_MEANS else None
        begun = (folder / "config.json").exists() and not overwrite
        try:
            if begun and is_finished(folder, settings, exact):
                outcomes[name] = "done before"
                continue
            log(f"{name}:", flush=True)
            with needing_workers():
                train(settings, folder, resume=begun, overwrite=overwrite, recalibrate=exact, quiet=quiet, **options)
            outcomes[name] = "done"
        except UserError as error:
            outcomes[name] = str(error)
            log(f"{name} failed: {error}", flush=True)
    return outcomes


def is_finished(folder: Path, settings: Settings, recalibrate: bool | None) -> bool:
    """Whether a run of these settings is complete; its metrics may be newer than its last checkpoint.

    Raises
    ------
    SettingsError
        If the run had fewer epochs: a run that was extended is not one that began with them.
    """
    run = read_run(folder, need_rows=False)
    saved = settings_from(run.settings)
    if refused_changes(saved, located(settings)) or "last" not in run.checkpoints:
        return False
    if saved.epochs != settings.epochs:
        raise SettingsError(
            f"{folder} was trained with epochs = {saved.epochs}, not {settings.epochs}: choose another --output, train "
            f"again (--overwrite), or extend it (etf-train --resume --epochs {settings.epochs} --output {folder})"
        )
    if load_checkpoint(folder / "last.pt")["epoch"] <= settings.epochs:
        return False
    table = folder / "metrics.csv"  # written last of all
    if not table.is_file() or table.read_bytes().count(b"\n") != 1 + len(run.rows):
        return False
    exact = settings.head in FOLLOWS_MEANS and recalibrate is not False
    done = (folder / "recalibrated.json").exists()  # 0.1.0 did not record the epoch
    return not exact or (done and read_exact(folder).get("epoch", settings.epochs) == settings.epochs)
