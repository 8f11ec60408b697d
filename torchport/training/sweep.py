"""`etf-train sweep`: one recipe with several heads and seeds, one run after the other in one process.

    etf-train sweep digits --heads learned fixed implicit --seeds 3 --output runs/demo

Runs go to OUTPUT/HEAD-seedN. Finished ones are skipped and interrupted ones resumed; after a failure the rest
goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .run.settings import Settings, SettingsError


def sweep(
    make_settings: Callable[[Mapping[str, Any]], Settings],
    heads: Sequence[str],
    seeds: int,
    output: str | Path,
    recalibrate: bool | None = None,
    **options: Any,
) -> dict[str, str]:
    """Train every head with every seed 0…seeds−1.

    Parameters
    ----------
    make_settings : callable
        From {"head": …, "seed": …} to the settings of a run.
    heads : sequence of str
    seeds : int
    output : path
        Folder of the run folders.
    recalibrate : bool, optional
        As for `train`, for implicit heads.
    options
        As for `train`: data_dir, device, overwrite.

    Returns
    -------
    dict
        What became of each run: "done", "done before", or what went wrong.

    Raises
    ------
    SettingsError
        If a setting is wrong; nothing has been trained then.
    """
    from .run.checkpoint import CheckpointError
    from .data import DataError
    from .run.folder import read_settings
    from .train import TrainingError, train

    runs = {
        f"{head}-seed{seed}": make_settings({"head": head, "seed": seed}) for head in heads for seed in range(seeds)
    }
    outcomes: dict[str, str] = {}
    for name, settings in runs.items():
        folder = Path(output) / name
        begun = (folder / "config.json").exists() and not options.get("overwrite")
        try:
            exact = recalibrate if settings.head == "implicit" else None
            if begun and read_settings(folder) == settings and is_finished(folder, settings, exact):
                outcomes[name] = "done before"
                continue
            print(f"{name}:", flush=True)
            train(settings, folder, resume=begun, recalibrate=exact, **options)
            outcomes[name] = "done"
        except (SettingsError, DataError, CheckpointError, TrainingError) as error:
            outcomes[name] = str(error)
            print(f"{name} failed: {error}", flush=True)
    return outcomes


def is_finished(run: Path, settings: Settings, recalibrate: bool | None) -> bool:
    """Whether a run has nothing left to do: its metrics may be a step ahead of its last checkpoint."""
    from .run.checkpoint import load_checkpoint

    last = run / "last.pt"
    if not last.exists() or load_checkpoint(last)["epoch"] <= settings.epochs:
        return False
    exact = settings.head == "implicit" and recalibrate is not False
    return not exact or (run / "recalibrated.json").exists()
