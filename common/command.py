"""The argument parser, the error handling and the exit statuses of every command.

0      success
1      a check or a training run failed
2      usage error, with one line on standard error
130    Ctrl-C
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
import signal
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from .. import __version__
from .errors import UserError, first_line, nearest_name

OPTIONAL_PACKAGES = (
    "torch",
    "tqdm",
    "matplotlib",
    "jinja2",
    "PIL",
    "sklearn",
    "pooch",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
# Phrases by which torch and NumPy report a lack of memory; the types of these errors differ.
NO_MEMORY = (
    "allocate memory",
    "Unable to allocate",
    "out of memory",
    "Storage size calculation overflowed",
    "Maximum allowed dimension exceeded",
    "array is too big",
    "integer multiplication overflow",
)
LARGEST_INTEGER = 2**63 - 1  # the libraries below count in 64 bits
LONGEST_WORD = 500  # characters; a file name has at most 255
PLAIN = {"≤": "<=", "≥": ">=", "−": "-", "→": "->", "‖": "||", "√": "sqrt "}


class Parser(argparse.ArgumentParser):
    """`argparse` with `--version` and `--quiet`, without abbreviated flags, and with one-line errors.

    Parameters
    ----------
    prog : str
        The command's name.
    description : str
    examples : str
        Lines of `command    comment`, shown by `--help`.

    Examples
    --------
    >>> parser = Parser("etf-example", "Show how a command reads its arguments.", "etf-example --quiet    say nothing")
    >>> parser.parse_args(["--quiet"]).quiet
    True
    """

    def __init__(self, prog: str, description: str, examples: str = "") -> None:
        lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{lines}" if lines else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", int, integer)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")
        self.add_argument("--quiet", action="store_true", help="print only requested results and errors")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As in `argparse`, but an unknown flag is reported first, with the nearest known one."""
        use_plain_letters()
        words = list(sys.argv[1:] if args is None else args)
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in flags:
                self.error(nearest_name("flag", name, flags).split(" (one of")[0])
        given, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return given

    def after(self, name: str, words: Sequence[str]) -> list[str] | None:
        """The words without the subcommand `name` that this parser reads; None if they do not call it.

        Flags may precede it, as in `etf-train --quiet sweep digits`.

        >>> parser = Parser("etf-example sweep", "Show where a subcommand may stand.")
        >>> parser.after("sweep", ["--quiet", "sweep", "x"]), parser.after("sweep", ["x", "sweep"])
        (['--quiet', 'x'], None)
        """
        valued = {flag for action in self._actions if action.nargs != 0 for flag in action.option_strings}
        pairs = enumerate(zip(["", *words], words, strict=False))
        first = next((i for i, (before, word) in pairs if not word.startswith("-") and before not in valued), None)
        return None if first is None or words[first] != name else [*words[:first], *words[first + 1 :]]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {cut(message)} (see {self.prog} --help)\n")


def integer(text: str) -> int:
    """The integer that an argument gives, for `type=int`.

    >>> integer("-3")
    -3

    Raises
    ------
    ValueError
        If the text is not an integer.
    argparse.ArgumentTypeError
        If the integer has more than 64 bits.
    """
    number = int(text)
    if abs(number) > LARGEST_INTEGER:
        raise argparse.ArgumentTypeError(f"{text} is too large: expected at most {LARGEST_INTEGER}")
    return number


def use_plain_letters() -> None:
    """Replace characters that the encoding of standard output lacks (cp1252 in pipes on Windows) instead of failing.

    Mathematical symbols become ASCII, and Greek letters their names. Other characters, and undecodable bytes of file
    names, become escape sequences.
    """
    codecs.register_error("plain-letters", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain-letters")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    names = (unicodedata.name(letter, "") for letter in letters)
    greek = [name.split()[-1].lower() if name.startswith("GREEK") else "" for name in names]
    escaped = [letter.encode("ascii", "backslashreplace").decode("ascii") for letter in letters]
    return "".join(PLAIN.get(x) or g or e for x, g, e in zip(letters, greek, escaped, strict=True)), error.end


def printer(quiet: bool) -> Callable[..., None]:
    """`print`, or a function that prints nothing."""
    return (lambda *_, **__: None) if quiet else print


def run_command(prog: str, body: Callable[[], int], extra: str = "train") -> int:
    """Run the body of a command and return its exit status; an error that ends it is printed as one line.

    - `extra` is the extra that installs the command's packages, as in `pip install 'nearest-etf[train]'`.
    - Each warning is printed as one line. Pillow's warnings are suppressed: a file that it cannot read is an error.
    - After Ctrl-C, any error counts as an interruption: a library interrupted while it loads may raise any error.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        if _importing(frame):  # an exception during the import of torch aborts the process
            end_at_once(number, frame)
        raise KeyboardInterrupt

    format_before, handler_before = warnings.formatwarning, signal.getsignal(signal.SIGINT)
    try:
        if handler_before in (signal.default_int_handler, end_at_once):
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, interrupt)
        warnings.formatwarning = lambda message, *_, **__: f"{prog}: warning: {' '.join(str(message).split())}\n"
        warnings.filterwarnings("ignore", module=r"PIL\.")
        status = body()
        sys.stdout.flush()
        return status
    except UserError as error:
        return fail(prog, str(error), error.exit_status)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if interrupted:
            return fail(prog, "interrupted", 130)
        if package not in OPTIONAL_PACKAGES:
            raise
        if not isinstance(error, ModuleNotFoundError):
            return fail(prog, f"{package} cannot be loaded ({first_line(error)}): reinstall it")
        return fail(prog, f"{package} is missing: pip install 'nearest-etf[{extra}]'")
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of standard output, such as `head`, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return fail(prog, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return fail(prog, "interrupted", 130)
    except Exception as error:
        if interrupted:
            return fail(prog, "interrupted", 130)
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            line = first_line(error)
            return fail(prog, f"not enough memory ({line}): lower the batch size, or the size of the network", 1)
        raise
    finally:
        warnings.formatwarning = format_before
        with contextlib.suppress(ValueError, TypeError):  # TypeError: the previous handler was not set by Python
            signal.signal(signal.SIGINT, handler_before)


def fail(prog: str, message: str, status: int = 2) -> int:
    """Print an error as one line; returns the exit status."""
    print(f"{prog}: {cut(message)}", file=sys.stderr)
    return status


def cut(message: str) -> str:
    """A message as one line, with overlong words (such as a path of a thousand folders) truncated.

    >>> cut("no such folder: " + "x" * 1000)[-10:], cut("two\\nlines")
    ('xxxxxxxxx…', 'two lines')
    """
    line = " ".join(line.strip() for line in message.splitlines() if line.strip())
    words = line.split(" ")  # not `split()`: file names may contain several blanks
    return " ".join(word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}…" for word in words)


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle Ctrl-C while a command is still loading: exit at once, since there is nothing to clean up."""
    os.write(2, f"{_command()}: interrupted\n".encode())
    os._exit(130)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being loaded."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _command() -> str:
    """The name of the running program; it starts with "etf-" if the program is a command of this package."""
    return os.path.basename(sys.argv[0]) if sys.argv else ""


if _command().startswith("etf-") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, end_at_once)
