"""Predictions as text: one row per image and class as a table, CSV or JSON, or one object per image as JSON lines.

The text is generated image by image.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..common.text import columns_of, shown
from .predict import Prediction

COLUMNS = ("file", "rank", "label", "name", "probability", "cosine")
OOD_COLUMNS = ("ood_score", "verdict")  # equal in all rows of an image
VERDICTS = ("unfamiliar", "accepted")
Row = dict[str, Any]


def image_rows(
    path: Path, prediction: Prediction, i: int, class_names: Sequence[str], k: int, *, ood: bool = False
) -> list[Row]:
    """One row for each of the k most probable classes of image i, with `COLUMNS`, and for `ood` also `OOD_COLUMNS`."""
    rows = []
    more = {}
    if ood and prediction.ood_scores is not None and prediction.accepted is not None:
        verdict = VERDICTS[int(prediction.accepted[i])]
        more = dict(zip(OOD_COLUMNS, (round(float(prediction.ood_scores[i]), 6), verdict), strict=True))
    for rank, label in enumerate(prediction.top(k)[i].tolist()):
        probability, cosine = (
            round(float(values[i, label]), 6) for values in (prediction.probabilities, prediction.class_cosines)
        )
        values = (str(path), rank + 1, label, class_names[label], probability, cosine)
        rows.append(dict(zip(COLUMNS, values, strict=True)) | more)
    return rows


def as_text(
    images: Iterable[list[Row]], style: str, widths: tuple[int, int] = (0, 0), *, ood: bool = False
) -> Iterator[str]:
    """The rows of each image as text, with the head and the end of the format.

    Parameters
    ----------
    images : iterable of lists of rows
    style : {"table", "csv", "json", "jsonl"}
    widths : (int, int)
        Widths of the columns of files and names in a table, see `columns`.
    ood : bool
        Whether the rows have `OOD_COLUMNS`.

    Examples
    --------
    >>> row = {"file": "a.png", "rank": 1, "label": 0, "name": "cat", "probability": 0.75, "cosine": 0.5}
    >>> print("".join(as_text([[row]], "csv")), end="")
    file,rank,label,name,probability,cosine
    a.png,1,0,cat,0.75,0.5
    """
    more = OOD_COLUMNS if ood else ()
    if style == "json":
        separator = "["
        for rows in images:
            for row in rows:
                yield f"{separator}\n{textwrap.indent(json.dumps(row, indent=1, ensure_ascii=False), ' ')}"
                separator = ","
        yield "[]\n" if separator == "[" else "\n]\n"
    elif style == "jsonl":
        for rows in images:
            classes = [{name: row[name] for name in COLUMNS[1:]} for row in rows]
            of_image = {name: rows[0][name] for name in ("file", *more)}
            yield json.dumps({**of_image, "classes": classes}, ensure_ascii=False) + "\n"
    elif style == "csv":
        yield ",".join((*COLUMNS, *more)) + "\n"
        for rows in images:
            text = io.StringIO()
            csv.DictWriter(text, (*COLUMNS, *more), lineterminator="\n").writerows(rows)
            yield text.getvalue()
    else:
        for rows in images:
            yield "".join(
                f"{padded(row['file'], widths[0])}  {padded(row['name'], widths[1])}  {100 * row['probability']:6.2f} %"
                f"  cosine {row['cosine']:6.3f}{_familiarity(row) if ood else ''}\n"
                for row in rows
            )


def columns(names: Iterable[object]) -> int:
    """The number of terminal columns of the longest name.

    >>> columns(["cat", "猫猫"])
    4
    """
    return max(columns_of(shown(name)) for name in names)


def padded(name: object, width: int) -> str:
    """A name in one line, padded with spaces to `width` terminal columns.

    >>> padded("two\\nlines", 10) + "|"
    'two lines |'
    """
    line = shown(name)
    return line + " " * (width - columns_of(line))


def _familiarity(row: Row) -> str:
    """The OOD columns of a table's row.

    >>> _familiarity({"ood_score": 0.75, "verdict": "accepted"})
    '  ood score 0.750  accepted'
    """
    return f"  ood score {row['ood_score']:.3f}  {row['verdict']}"
