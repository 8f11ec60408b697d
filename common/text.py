"""Display of names of files, runs, data sets and classes: on one line, within a given width, without dependencies."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def shown(name: object) -> str:
    """A name on one line: line breaks become spaces, control characters and undecodable bytes become "�".

    >>> shown("two\\nlines"), shown("\\x1b[31mred")
    ('two lines', '�[31mred')
    """
    letters = " ".join(str(name).split())
    return "".join("�" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in letters) or "''"


def shortened(name: object, most: int) -> str:
    """A name of at most `most` characters, with an ellipsis in the middle: the end often distinguishes names.

    >>> shortened("timm:efficientnet_b0.ra_in1k", 17)
    'timm:eff….ra_in1k'
    """
    letters = shown(name)
    kept = most - 1
    return letters if len(letters) <= most else f"{letters[: kept // 2]}…{letters[len(letters) - kept // 2 :]}"


def columns_of(text: str) -> int:
    """The columns that a text takes in a terminal: two for a wide character, none for a combining one.

    >>> columns_of("τ=5"), columns_of("猫")
    (3, 2)
    """
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def listed(names: Sequence[str]) -> str:
    """Names joined as in "a, b and c".

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
