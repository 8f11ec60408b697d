"""`etf-train`: from a recipe and flags to a trained run folder, or with `etf-train sweep` to several."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

from .run.settings import (
    Settings,
    SettingsError,
    load_recipe,
    nearest_name,
    recipe_names,
    recipe_text,
    settings_from,
)

if TYPE_CHECKING:
    from .progress import Stopped

EXAMPLES = """examples:
  etf-train digits --head implicit --seed 0 --output runs/x    train; seconds on a laptop
  etf-train digits --head learned --epochs 5 --lr 1e-3         any setting of the recipe can be changed
  etf-train --resume --output runs/x                           go on where a run stopped
  etf-train sweep digits --heads fixed implicit --seeds 3      several runs; finished ones are skipped
  etf-train --list                                             the recipes
  etf-train --show cifar10-resnet18                            what a recipe says
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser(sweeping: bool = False) -> argparse.ArgumentParser:
    """All flags; those of the settings are made from the fields of `Settings`."""
    parser = _Parser(
        prog="etf-train sweep" if sweeping else "etf-train",
        description="Train a network with a learned, a fixed ETF or a nearest-ETF classifier head.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe's name, or a TOML file")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--show", metavar="RECIPE", help="print a recipe and exit")
    run = parser.add_argument_group("the run")
    if sweeping:
        run.add_argument("--heads", nargs="+", metavar="HEAD", default=["learned", "fixed", "implicit"])
        run.add_argument("--seeds", type=int, metavar="N", default=3, help="seeds 0 to N-1 [3]")
        run.add_argument("--output", metavar="DIR", help="folder of the run folders HEAD-seedN (runs/RECIPE)")
    else:
        run.add_argument("--output", metavar="DIR", help="run folder (runs/RECIPE-HEAD-seedN)")
        run.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    run.add_argument("--overwrite", action="store_true", help="replace runs that exist")
    run.add_argument(
        "--recalibrate",
        action=argparse.BooleanOptionalAction,
        help="implicit: at the end (of a finished run with --resume: now) set means, W and b from one exact pass [on]",
    )
    run.add_argument("--data-dir", metavar="DIR", help="where data sets lie ($NEAREST_ETF_DATA, or a cache folder)")
    run.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (a GPU where there is one)")
    group = parser.add_argument_group("settings (defaults in brackets; a recipe changes some of them)")
    for f in fields(Settings):
        if f.name == "recipe" or (sweeping and f.name in ("head", "seed")):
            continue
        choices = f.metadata["choices"]
        about = f"{', '.join(choices) + ': ' if choices else ''}{f.metadata['help']} [{f.default}]"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": about.replace("%", "%%")}
        if isinstance(f.default, bool):
            group.add_argument(f"--{f.name.replace('_', '-')}", action=argparse.BooleanOptionalAction, **options)
        else:
            letter = {int: "N", float: "X"}.get(type(f.default), "NAME")
            group.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), metavar=letter, **options)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 1 if training failed, 2 if it was asked for in the wrong way."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sweeping = words[:1] == ["sweep"]
    parser = build_parser(sweeping)
    given, unknown = parser.parse_known_args(words[1:] if sweeping else words)
    values = vars(given)
    recipe, output, show, listing = (values.pop(name) for name in ("recipe", "output", "show", "list"))
    options = {name: values.pop(name) for name in ("overwrite", "recalibrate", "data_dir", "device")}
    try:
        if unknown:
            flags = [flag for action in parser._actions for flag in action.option_strings]
            raise SettingsError(nearest_flag(unknown[0], flags))
        if listing:
            print("\n".join(recipe_names()))
            return 0
        if show:
            print(recipe_text(show), end="")
            return 0
        if sweeping:
            heads, seeds = values.pop("heads"), values.pop("seeds")
            return run_sweep(recipe, values, heads, seeds, output, **options)
        resume = values.pop("resume")
        settings = gather_settings(recipe, values, output if resume else None)
        output = output or f"runs/{settings.recipe}-{settings.head}-seed{settings.seed}"
        return run(settings, output, resume=resume, **options)
    except SettingsError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


def nearest_flag(found: str, flags: list[str]) -> str:
    """The complaint about a word on the command line that means nothing."""
    if not found.startswith("-"):
        return f"{found!r} means nothing here: one recipe, then flags (see etf-train --help)"
    return nearest_name("flag", found, flags).split(" (one of")[0] + " (see etf-train --help)"


def gather_settings(recipe: str | None, values: dict[str, Any], resumed: str | None) -> Settings:
    """Settings from a recipe, else from the run that is resumed, else the defaults; then the flags."""
    if recipe:
        return load_recipe(recipe, values)
    if resumed:
        from .run.folder import read_settings

        return settings_from({**read_settings(resumed).to_dict(), **values})
    if not values:
        raise SettingsError("name a recipe (etf-train --list) or settings (etf-train --help)")
    return settings_from(values)


def run(settings: Settings, output: str, **options: Any) -> int:
    """Train, and say how it went."""
    from .run.checkpoint import CheckpointError
    from .data import DataError
    from .progress import Stopped
    from .run.folder import epochs_to, read_rows
    from .train import TrainingError, train

    try:
        row = train(settings, output, **options)
    except (DataError, CheckpointError) as error:
        # From a worker process the message comes after that process's traceback.
        raise SettingsError(str(error).rstrip().splitlines()[-1].rpartition("DataError: ")[2]) from error
    except TrainingError as error:
        print(f"etf-train: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        return say_stopped("etf-train", stopped)
    if not row:  # one of several processes: the first one reports
        return 0
    rows = read_rows(output)
    reached = ", ".join(f"{level:.0%} in epoch {epochs_to(rows, level) or 'none'}" for level in (0.95, 0.99))
    print(f"{output}: test accuracy {row['test_accuracy']:.2%}, training accuracy {reached}")
    return 0


def run_sweep(
    recipe: str | None, values: dict[str, Any], heads: list[str], seeds: int, output: str | None, **options: Any
) -> int:
    """Train every head with every seed, and list what became of them."""
    from .progress import Stopped
    from .sweep import sweep

    folder = output or f"runs/{recipe or 'custom'}"
    try:
        outcomes = sweep(lambda run: gather_settings(recipe, {**values, **run}, None), heads, seeds, folder, **options)
    except Stopped as stopped:
        return say_stopped("etf-train sweep", stopped)
    for name, outcome in outcomes.items():
        print(f"{folder}/{name}: {outcome}")
    return 0 if all(outcome.startswith("done") for outcome in outcomes.values()) else 1


def say_stopped(command: str, stopped: Stopped) -> int:
    """How to go on, said once for all processes; the exit code."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{command}: {stopped.message}", file=sys.stderr)
    return int(stopped.code or 1)


if __name__ == "__main__":
    sys.exit(main())
