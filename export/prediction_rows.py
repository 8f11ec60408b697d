"""Predictions as text: a row per image and class named, as a table, CSV or JSON, or an object per image as JSON lines.

Each image's text comes as soon as its prediction is there.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .predict import Prediction

COLUMNS = ("file", "rank", "label", "name", "probability", "cosine")
Row = dict[str, Any]


def image_rows(path: Path, prediction: Prediction, i: int, class_names: Sequence[str], k: int) -> list[Row]:
    """A row for each of the k most probable classes of image i, with `COLUMNS`."""
    rows = []
    for rank, label in enumerate(prediction.top(k)[i].tolist()):
        probability, cosine = (
            round(float(values[i, label]), 6) for values in (prediction.probabilities, prediction.class_cosines)
        )
        values = (str(path), rank + 1, label, class_names[label], probability, cosine)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def as_text(images: Iterable[list[Row]], style: str, widths: tuple[int, int] = (0, 0)) -> Iterator[str]:
    """The rows of each image as text; head and end of the format come with the first and after the last.

    Parameters
    ----------
    images : iterable of lists of rows
    style : {"table", "csv", "json", "jsonl"}
    widths : (int, int)
        Of the columns of files and names in a table.

    Examples
    --------
    >>> row = {"file": "a.png", "rank": 1, "label": 0, "name": "cat", "probability": 0.75, "cosine": 0.5}
    >>> print("".join(as_text([[row]], "csv")), end="")
    file,rank,label,name,probability,cosine
    a.png,1,0,cat,0.75,0.5
    """
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
            yield json.dumps({"file": rows[0]["file"], "classes": classes}, ensure_ascii=False) + "\n"
    elif style == "csv":
        yield ",".join(COLUMNS) + "\n"
        for rows in images:
            text = io.StringIO()
            csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
            yield text.getvalue()
    else:
        for rows in images:
            yield "".join(
                f"{row['file']:<{widths[0]}}  {row['name']:<{widths[1]}}  {row['probability']:7.2%}"
                f"  cosine {row['cosine']:.3f}\n"
                for row in rows
            )
