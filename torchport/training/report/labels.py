"""Short labels for groups of runs: the fewest settings that tell them apart, or letters if those are too long.

`implicit · τ=5 · lr 0.1`, or `A · implicit` beside a table of all that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....common.errors import UserError
from ....common.text import listed, shortened, shown

LONGEST = 40  # letters of a label that is made of settings
MOST_SETTINGS = 3  # in a label
SIGNS = {"temperature": "τ", "delta": "δ"}
FIRST = ("temperature", "lr", "backbone", "loss", "epochs", "training images")  # preferred in labels, in this order
SPEAKING = ("backbone", "loss", "optimizer", "precision")  # shown by their values, without their names

Value = float | bool | str | None


class LabelError(UserError):
    """Labels that do not fit the runs."""


def plain_value(value: object) -> Value:
    """A setting as it is compared: 5 and 5.0 are the same."""
    if isinstance(value, bool) or value is None:
        return value
    return float(value) if isinstance(value, int | float) else str(value)


def value_text(value: Value) -> str:
    """A setting as it is shown.

    >>> value_text(0.1), value_text(True), value_text(None), value_text("")
    ('0.1', 'yes', 'default', 'none')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "default"
    return f"{value:.12g}" if isinstance(value, float) else shown(value) if value else "none"


def phrase(name: str, value: Value) -> str:
    """A setting and its value in a label.

    >>> phrase("temperature", 5.0), phrase("weight_decay", 0.1), phrase("gradient", False), phrase("backbone", "mlp")
    ('τ=5', 'weight decay 0.1', 'no gradient', 'mlp')
    >>> phrase("temperature", None)
    'default τ'
    """
    words = shown(name.replace("_", " "))
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if value is None:
        return f"default {SIGNS.get(name, words)}"
    if name in SIGNS:
        return f"{SIGNS[name]}={value_text(value)}"
    if name == "training images":
        return f"{value_text(value)} training images"
    return value_text(value) if name in SPEAKING else f"{words} {value_text(value)}"


def short_labels(heads: Sequence[str], differing: Sequence[Mapping[str, Value]]) -> list[str]:
    """A label for each group of runs.

    Parameters
    ----------
    heads : sequence of str
    differing : sequence of mapping
        By group: values of the settings that are not the same in all groups, by name. No two groups have the same head
        and the same values.

    Examples
    --------
    >>> settings = [{"temperature": 5.0, "lr": 0.1, "width": 8.0}, {"temperature": 10.0, "lr": 0.1, "width": 16.0}]
    >>> short_labels(["implicit", "implicit"], settings)
    ['implicit · τ=5', 'implicit · τ=10']
    >>> short_labels(["learned", "implicit"], settings)
    ['learned', 'implicit']
    """
    count, names = len(heads), list(differing[0]) if differing else []
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))  # stable

    def told_apart(chosen: Sequence[str]) -> int:
        return len({(head, *map(values.get, chosen)) for head, values in zip(heads, differing, strict=True)})

    chosen: list[str] = []
    while told_apart(chosen) < count:
        rest = (name for name in names if name not in chosen)
        chosen.append(max(rest, key=lambda name: told_apart([*chosen, name])))
    for name in tuple(chosen):
        others = [other for other in chosen if other != name]
        chosen = others if told_apart(others) == count else chosen
    chosen.sort(key=names.index)
    plain = [shortened(head, LONGEST - 4) for head in heads]
    labels = [
        " · ".join([head, *(phrase(name, values[name]) for name in chosen)])
        for head, values in zip(plain, differing, strict=True)
    ]
    if len(chosen) <= MOST_SETTINGS and max(map(len, labels)) <= LONGEST and len(set(labels)) == count:
        return labels
    return [f"{letters(i)} · {head}" for i, head in enumerate(plain)]


def letters(index: int) -> str:
    """A, B, …, Z, AA, AB, …

    >>> letters(0), letters(25), letters(26), letters(27)
    ('A', 'Z', 'AA', 'AB')
    """
    before, last = divmod(index, 26)
    return (letters(before - 1) if before else "") + chr(ord("A") + last)


def check_labels(labels: Sequence[str], present: Sequence[str]) -> list[str]:
    """A user's labels, one line each, for groups whose default labels are `present`.

    Raises
    ------
    LabelError
        If there are more or fewer than groups, if one is empty, or if two are the same.

    Examples
    --------
    >>> check_labels(["baseline", "ours"], ["learned", "implicit"])
    ['baseline', 'ours']
    """
    names = [" ".join(label.split()) and shown(label) for label in labels]
    if len(names) != len(present):
        order = listed([shortened(label, LONGEST) for label in present])
        raise LabelError(
            f"--labels has {len(names)} of the {len(present)} names that the runs need: give one for each line of "
            f"the tables, in this order: {order}"
        )
    if "" in names:
        raise LabelError("--labels has an empty name: use at least one letter")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LabelError(f"--labels has {twice!r} twice: give different names")
    return names
