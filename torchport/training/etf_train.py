"""`etf-train`: train one run from a recipe and flags, or several with `etf-train sweep`."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from ...common.command import Parser, fail, printer, run_command
from ...common.files import describe
from .run.data_path import default_output, default_sweep, folder_recipe
from .run.folder import RESUMABLE
from .run.reading import epochs_to, read_run
from .run.settings import Settings, SettingsError, load_recipe, recipe_names, recipe_text, settings_from

EXAMPLES = """
etf-train digits --head implicit --seed 0 --output runs/x    train; seconds on a laptop
etf-train digits --head learned --epochs 5 --lr 1e-3         any setting of the recipe can be changed
etf-train --data photos --backbone resnet18                  images in photos/CLASS/, or in train/, val/, test/ of these
etf-train --data photos --backbone timm:resnet50 --pretrained     fine-tune a network; or --weights FILE
etf-train --resume --output runs/x                           resume a run that stopped
etf-train --resume --output runs/x --epochs 40               extend it; --data FOLDER: its images have moved
etf-train runs/x/config.json --output runs/y                 repeat a run
etf-train sweep digits --heads fixed implicit --seeds 3      several runs; finished ones are skipped
etf-train --list                                             the recipes
etf-train --show cifar10-resnet18                            the text of a recipe
"""
LOST = ("gloo", "NCCL", "Connection", "torch.distributed.Dist")  # in errors about a lost process
# torchrun on Python 3.11 takes --start for an abbreviation of one of its own options.
ALIASES = {"optimizer": ["--optimiser"], "lr": ["--learning-rate"], "start": ["--head-start"]}


def build_parser(sweeping: bool = False) -> Parser:
    """The parser; flags of settings come from the fields of `Settings`."""
    parser = Parser(
        "etf-train sweep" if sweeping else "etf-train",
        "Train a network with a linear, learned, fixed-ETF, nearest-ETF, class-mean or tight-frame classifier head.",
        EXAMPLES,
    )
    about = "a recipe's name, a TOML file, or the config.json of a run to repeat"
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=about)
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument("--show", metavar="RECIPE", help="print a recipe and exit")
    run = parser.add_argument_group("the run")
    if sweeping:
        run.add_argument("--heads", nargs="+", metavar="HEAD", default=["learned", "fixed", "implicit"])
        run.add_argument("--seeds", type=int, metavar="N", default=3, help="seeds 0 to N-1 [3]")
        run.add_argument("--output", metavar="DIR", help="folder of the run folders HEAD-seedN [runs/RECIPE-DATA]")
    else:
        run.add_argument("--output", metavar="DIR", help="run folder [runs/RECIPE-DATA-HEAD-seedN]")
        run.add_argument("--resume", action="store_true", help="resume the run in the output folder")
    run.add_argument("--overwrite", action="store_true", help="replace runs that exist")
    run.add_argument(
        "--recalibrate",
        action=argparse.BooleanOptionalAction,
        help="implicit, class-mean, tight-frame: at the end (with --resume of a finished run: now) set means, W and b "
        "from one exact pass [on]",
    )
    run.add_argument("--data-dir", metavar="DIR", help="folder of the data sets [$NEAREST_ETF_DATA, or a cache folder]")
    run.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … [a GPU if there is one]")
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
    """The value of a flag: of the given type, or one of `words`."""
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
    sweeping = build_parser(sweeping=True)
    swept = sweeping.after("sweep", words)
    if swept is None:
        values = vars(build_parser().parse_args(words))
        return run_command("etf-train", lambda: train_command(values))
    values = vars(sweeping.parse_args(swept))
    again = ["sweep", *(word for word in swept if word != "--overwrite")]
    return run_command(sweeping.prog, lambda: sweep_command(values, again))


def train_command(values: dict[str, Any]) -> int:
    """Train one run, or list or show recipes; return the exit status."""
    recipe, output, show, listing = (values.pop(name) for name in ("recipe", "output", "show", "list"))
    if listing or show:
        print(recipe_text(show).rstrip() if show else "\n".join(recipe_names()))
        return 0
    options = {name: values.pop(name) for name in ("resume", "overwrite", "recalibrate", "data_dir", "device", "quiet")}
    settings, output = gather_settings(recipe, values, output, options["resume"])

    from .data.worker import needing_workers
    from .progress import Stopped, accuracies
    from .train import train

    try:
        with process_group(), needing_workers():
            row = train(settings, output, **options)
    except Stopped as stopped:
        return stopped_status("etf-train", stopped)
    if row:  # on the first of several processes
        run = read_run(output)
        first = {level: epochs_to(run.rows, level) for level in (0.95, 0.99)}
        words = {level: "not reached" if epoch is None else f"in epoch {epoch}" for level, epoch in first.items()}
        reached = ", ".join(f"{100 * level:.0f} % {word}" for level, word in words.items())
        result = f"{output}/{run.result}.pt: {', '.join(accuracies(run.result_row))}"
        printer(options["quiet"])(f"{result}; training accuracy {reached}")
    return 0


def sweep_command(values: dict[str, Any], again: Sequence[str]) -> int:
    """Train every head with every seed and print the outcomes; return the exit status.

    `again` are the words of the command that resumes the sweep: the given ones without --overwrite.
    """
    recipe, output, show, listing = (values.pop(name) for name in ("recipe", "output", "show", "list"))
    if listing or show:
        raise SettingsError(f"--{'list' if listing else 'show'} is not for sweeps: use etf-train --list, --show RECIPE")
    heads, seeds = values.pop("heads"), values.pop("seeds")
    if seeds < 1:
        raise SettingsError(f"seeds is {seeds}, but has to be at least 1")
    options = {name: values.pop(name) for name in ("overwrite", "recalibrate", "data_dir", "device", "quiet")}
    settings = [{**values, "head": head, "seed": seed} for head in heads for seed in range(seeds)]
    runs = [gather_settings(recipe, chosen)[0] for chosen in settings]

    from .progress import Stopped
    from .sweep import sweep

    folder = output or (default_sweep(runs[0]) if runs else "runs/none")
    log = printer(options["quiet"])
    try:
        with process_group():
            outcomes = sweep(runs, folder, **options)
    except Stopped as stopped:
        stopped.command = f"{stopped.launcher} {shlex.join(again)}"
        return stopped_status("etf-train sweep", stopped)
    status = 0
    for name, outcome in outcomes.items():
        if outcome.startswith("done"):
            log(f"{folder}/{name}: {outcome}")
        else:
            status = fail("etf-train sweep", f"{folder}/{name}: {outcome}", 1)
    return status


def gather_settings(
    recipe: str | None, values: dict[str, Any], output: str | None = None, resume: bool = False
) -> tuple[Settings, str]:
    """Settings and run folder: from a recipe, the resumed run or the defaults, overridden by the flags.

    * An image folder without a recipe takes the recipe "fine-tune" if weights are given, else "photos".
    * A resumed run keeps its epochs, workers and data unless a flag changes them.
    """
    if not (recipe or values or (resume and output)):
        raise SettingsError("name a recipe (etf-train --list) or settings (etf-train --help)")
    if resume and output and not recipe:
        return settings_from({**read_run(output, need_rows=False).settings, **values}), output
    base = recipe or folder_recipe(values)
    settings = load_recipe(base, values) if base else settings_from(values)
    output = output or default_output(settings)
    if resume:
        saved = read_run(output, need_rows=False).settings
        kept = {name: saved[name] for name in RESUMABLE if name in saved} if recipe else saved
        settings = settings_from({**settings.to_dict(), **kept, **values})
    return settings, output


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Destroy torchrun's process group after a success or a stop in all processes.

    Raises
    ------
    TrainingError
        If another process is gone, or cannot be reached.
    """
    import torch.distributed as dist

    from .progress import Stopped
    from .train import TrainingError

    try:
        yield
    except Stopped:
        part()
        raise
    except RuntimeError as error:
        if not dist.is_initialized() or not any(name in f"{type(error)}: {error}" for name in LOST):
            raise
        raise TrainingError(
            f"process {dist.get_rank()} of {dist.get_world_size()} lost the connection to another one "
            f"({describe(error)}): that process's message, or torchrun's, has the reason; resume from the last "
            "checkpoint with --resume"
        ) from error
    part()


def part() -> None:
    """Destroy the process group, if any: otherwise its threads may abort the process at exit."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def stopped_status(command: str, error: Any) -> int:
    """Print the command that resumes the run, once for all processes; return the exit status."""
    status = int(error.code or 1)
    return status if int(os.environ.get("RANK", 0)) else fail(command, error.message, status)


if __name__ == "__main__":
    sys.exit(main())
