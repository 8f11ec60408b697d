"""`etf-train`: from a recipe and flags to a trained run folder, or with `etf-train sweep` to several."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from ...common.command import Parser, fail, printer, run_command
from .run.reading import epochs_to, read_run
from .run.settings import Settings, SettingsError, load_recipe, recipe_names, recipe_text, settings_from

EXAMPLES = """
etf-train digits --head implicit --seed 0 --output runs/x    train; seconds on a laptop
etf-train digits --head learned --epochs 5 --lr 1e-3         any setting of the recipe can be changed
etf-train --resume --output runs/x                           go on where a run stopped
etf-train sweep digits --heads fixed implicit --seeds 3      several runs; finished ones are skipped
etf-train --list                                             the recipes
etf-train --show cifar10-resnet18                            the text of a recipe
"""
ALIASES = {"optimizer": ["--optimiser"], "lr": ["--learning-rate"]}


def build_parser(sweeping: bool = False) -> Parser:
    """All flags; those of the settings are made from the fields of `Settings`."""
    parser = Parser(
        "etf-train sweep" if sweeping else "etf-train",
        "Train a network with a linear, a learned, a fixed ETF or a nearest-ETF classifier head.",
        EXAMPLES,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe's name, or a TOML file")
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--show", metavar="RECIPE", help="print a recipe and exit")
    run = parser.add_argument_group("the run")
    if sweeping:
        run.add_argument("--heads", nargs="+", metavar="HEAD", default=["learned", "fixed", "implicit"])
        run.add_argument("--seeds", type=int, metavar="N", default=3, help="seeds 0 to N-1 [3]")
        run.add_argument("--output", metavar="DIR", help="folder of the run folders HEAD-seedN [runs/RECIPE]")
    else:
        run.add_argument("--output", metavar="DIR", help="run folder [runs/RECIPE-HEAD-seedN]")
        run.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    run.add_argument("--overwrite", action="store_true", help="replace runs that exist")
    run.add_argument(
        "--recalibrate",
        action=argparse.BooleanOptionalAction,
        help="implicit: at the end (of a finished run with --resume: now) set means, W and b from one exact pass [on]",
    )
    run.add_argument("--data-dir", metavar="DIR", help="where data sets lie [$NEAREST_ETF_DATA, or a cache folder]")
    run.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … [a GPU where there is one]")
    group = parser.add_argument_group("settings (defaults in brackets; a recipe changes some of them)")
    for f in fields(Settings):
        if f.name == "recipe" or (sweeping and f.name in ("head", "seed")):
            continue
        choices, kind = f.metadata["choices"], f.metadata["type"]
        about = f"{', '.join(choices) + ': ' if choices else ''}{f.metadata['help']} [{f.metadata['default']}]"
        flags = [f"--{f.name.replace('_', '-')}", *ALIASES.get(f.name, [])]
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": about.replace("%", "%%")}
        if kind is bool:
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
        else:
            metavar = {int: "N", float: "X"}.get(kind, "NAME")
            group.add_argument(*flags, type=partial(read_value, kind, f.metadata["words"]), metavar=metavar, **options)
    return parser


def read_value(kind: type, words: Sequence[str], text: str) -> Any:
    """The value of a flag: of that type, or one of the words that may stand in its place."""
    if text in words:
        return text
    try:
        return kind(text)
    except ValueError:
        alternatives = "".join(f" or {word!r}" for word in words)
        raise argparse.ArgumentTypeError(f"{text!r} is not of type {kind.__name__}{alternatives}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 on success, 1 if training failed, 2 for a usage error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sweeping = words[:1] == ["sweep"]
    parser = build_parser(sweeping)
    values = vars(parser.parse_args(words[1:] if sweeping else words))
    return run_command(parser.prog, lambda: sweep_command(values) if sweeping else train_command(values))


def train_command(values: dict[str, Any]) -> int:
    """Train one run, or list or show recipes; the exit status."""
    recipe, output, show, listing = (values.pop(name) for name in ("recipe", "output", "show", "list"))
    if listing or show:
        print(recipe_text(show).rstrip() if show else "\n".join(recipe_names()))
        return 0
    options = {name: values.pop(name) for name in ("resume", "overwrite", "recalibrate", "data_dir", "device", "quiet")}
    settings = gather_settings(recipe, values, output if options["resume"] else None)
    output = output or f"runs/{settings.recipe}-{settings.head}-seed{settings.seed}"

    from .progress import Stopped, accuracies
    from .train import train

    try:
        row = train(settings, output, **options)
    except Stopped as stopped:
        return stopped_status("etf-train", stopped)
    if row:  # on the first of several processes
        run = read_run(output)
        first = {level: epochs_to(run.rows, level) for level in (0.95, 0.99)}
        reached = ", ".join(f"{level:.0%} {f'in epoch {e}' if e else 'not reached'}" for level, e in first.items())
        result = f"{output}/{run.result}.pt: {', '.join(accuracies(run.result_row))}"
        printer(options["quiet"])(f"{result}; training accuracy {reached}")
    return 0


def sweep_command(values: dict[str, Any]) -> int:
    """Train every head with every seed, and list what became of them; the exit status."""
    recipe, output, show, listing = (values.pop(name) for name in ("recipe", "output", "show", "list"))
    if listing or show:
        raise SettingsError(f"--{'list' if listing else 'show'} is not for sweeps: use etf-train --list, --show RECIPE")
    heads, seeds = values.pop("heads"), values.pop("seeds")
    options = {name: values.pop(name) for name in ("overwrite", "recalibrate", "data_dir", "device", "quiet")}
    runs = [
        gather_settings(recipe, {**values, "head": head, "seed": seed}, None) for head in heads for seed in range(seeds)
    ]

    from .progress import Stopped
    from .sweep import sweep

    folder = output or f"runs/{recipe or 'custom'}"
    log = printer(options["quiet"])
    try:
        outcomes = sweep(runs, folder, **options)
    except Stopped as stopped:
        return stopped_status("etf-train sweep", stopped)
    status = 0
    for name, outcome in outcomes.items():
        if outcome.startswith("done"):
            log(f"{folder}/{name}: {outcome}")
        else:
            status = fail("etf-train sweep", f"{folder}/{name}: {outcome}", 1)
    return status


def gather_settings(recipe: str | None, values: dict[str, Any], resumed: str | None) -> Settings:
    """Settings from a recipe, else from the run that is resumed, else the defaults; then the flags."""
    if recipe:
        return load_recipe(recipe, values)
    if resumed:
        return settings_from({**read_run(resumed, need_rows=False).settings, **values})
    if not values:
        raise SettingsError("name a recipe (etf-train --list) or settings (etf-train --help)")
    return settings_from(values)


def stopped_status(command: str, error: Any) -> int:
    """Print once for all processes how to go on; the exit status."""
    status = int(error.code or 1)
    return status if int(os.environ.get("RANK", 0)) else fail(command, error.message, status)


if __name__ == "__main__":
    sys.exit(main())
