"""Errors that are meant to be read by a user: one line that names what was found, what was expected and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_NAME = 200  # characters of a name that others are compared with, which takes time


class UserError(ValueError):
    """Something that cannot be used as it was given; the base of the errors below it in every room.

    `exit_status` is how a command ends with it: 2 for bad use, 1 for a check that failed.
    """

    exit_status = 2


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its type where it has none.

    >>> first_line(RuntimeError("shapes differ\\n  in conv2d")), first_line(KeyError())
    ('shapes differ', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object, most: int = 80) -> str:
    """A value as Python writes it, cut where it is long.

    >>> shown(0.5), shown("x" * 1000, most=6)
    ('0.5', "'xxxxx…")
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of many digits; lists within lists
        text = f"a long {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"


def nearest_name(kind: str, found: str, known: Iterable[str]) -> str:
    """The message about an unknown name.

    >>> nearest_name("head", "implict", ["learned", "fixed", "implicit"])
    "unknown head 'implict': did you mean 'implicit'? (one of: learned, fixed, implicit)"
    """
    known = list(known)
    close = difflib.get_close_matches(found[:LONGEST_NAME], known, n=1, cutoff=0.0)
    return f"unknown {kind} {shown(found)}: did you mean {close[0]!r}? (one of: {', '.join(known)})"
