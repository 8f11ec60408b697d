"""The table of `etf-predict`: one line per row, aligned columns."""

from __future__ import annotations

from nearest_etf.common.text import columns_of
from nearest_etf.export.prediction_rows import as_text, columns


def test_columns_are_aligned_for_any_name() -> None:
    files, names = ["a.png", "猫/two\nlines.jpg", "\x1b[31mred.png", "Übung.png"], ["猫猫", "cat", "a\tb", "dog"]
    rows = [
        [{"file": file, "rank": 1, "label": 0, "name": name, "probability": 0.5, "cosine": cosine}]
        for file, name, cosine in zip(files, names, (-0.5, 0.25, 0.0, -1.0), strict=True)
    ]
    lines = "".join(as_text(rows, "table", (columns(files), columns(names)))).splitlines()
    assert len(lines) == 4
    assert len({columns_of(line.partition("cosine")[0]) for line in lines}) == 1
    assert len({columns_of(line) for line in lines}) == 1
    assert lines[1].startswith("猫/two lines.jpg  cat ")
