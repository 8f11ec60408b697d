"""Errors for users: one line that names what was found, what was expected and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

KILLED_WORKER = "DataLoader worker"  # begins torch's error, which a signal handler raises at any point of a run
LONGEST_NAME = 200  # characters of an unknown name; limits the time of its comparison with the known ones


class UserError(ValueError):
    """Invalid input; the base class of every room's errors for users.

    `exit_status` is the exit status of a command that this error ends: 2 for a usage error, 1 for a failed check.
    """

    exit_status = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty.

    >>> first_line(RuntimeError("shapes differ\\n  in conv2d")), first_line(KeyError())
    ('shapes differ', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object, most: int = 80) -> str:
    """The `repr` of a value, truncated to `most` characters.

    >>> shown(0.5), shown("x" * 1000, most=6)
    ('0.5', "'xxxxx…")
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with too many digits; deeply nested lists
        text = f"a long {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


def nearest_name(kind: str, found: str, known: Iterable[str]) -> str:
    """The error message for an unknown name, with the nearest known one.

    >>> nearest_name("head", "implict", ["learned", "fixed", "implicit"])
    "unknown head 'implict': did you mean 'implicit'? (one of: learned, fixed, implicit)"
    """
    known = list(known)
    close = difflib.get_close_matches(found[:LONGEST_NAME], known, n=1, cutoff=0.0)
    return f"unknown {kind} {shown(found)}: did you mean {close[0]!r}? (one of: {', '.join(known)})"
