"""Names of files, runs, data and classes as they are shown: in one line, in a given width. Needs nothing but Python."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def shown(name: object) -> str:
    """A name in one line: spaces for line breaks, "�" for control characters and for bytes that are no text.

    >>> shown("two\\nlines"), shown("\\x1b[31mred")
    ('two lines', '�[31mred')
    """
    letters = " ".join(str(name).split())
    return "".join("�" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in letters) or "''"


def shortened(name: object, most: int) -> str:
    """A name in at most that many letters, with an ellipsis for its middle: what tells names apart is often the end.

    >>> shortened("timm:efficientnet_b0.ra_in1k", 17)
    'timm:eff….ra_in1k'
    """
    letters = shown(name)
    kept = most - 1
    return letters if len(letters) <= most else f"{letters[: kept // 2]}…{letters[len(letters) - kept // 2 :]}"


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: two for a wide letter, none for a combining one.

    >>> columns_of("τ=5"), columns_of("猫")
    (3, 2)
    """
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def listed(names: Sequence[str]) -> str:
    """As in "a, b and c".

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
