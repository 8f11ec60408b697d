"""Shared by the studies: a result file that grows run by run, and the protocol's statistics of paired seeds.

docs/protocol.md has the rules. A difference is taken seed by seed, with the same images, order and flips for both
heads; its interval is Student's, over the seeds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from nearest_etf.common.files import read_json, write_file
from nearest_etf.common.machine import provenance

CONFIDENCE = 0.95
LEAST_PAIRS = 5  # with fewer pairs every comparison is undecided


@dataclass(frozen=True)
class Paired:
    """Differences of two heads over the same seeds, and their verdict."""

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The t-interval of the mean; unbounded for a single pair."""
        n = len(self.differences)
        if n < 2:
            return -math.inf, math.inf
        half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(self.differences) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def agreeing(self) -> int:
        """The number of pairs whose difference has the sign of the mean; a difference of zero does not count."""
        return sum(x * self.mean > 0 for x in self.differences)

    @property
    def verdict(self) -> str:
        """Decided if the interval excludes zero and all pairs agree, or 90 % of ten or more; else "undecided"."""
        n, (low, high) = len(self.differences), self.interval
        needed = n if n < 10 else math.ceil(0.9 * n)
        if n < LEAST_PAIRS or low <= 0 <= high or self.agreeing < needed:
            return "undecided"
        return "better" if self.mean > 0 else "worse"


def paired(values: dict[int, float], others: dict[int, float]) -> Paired:
    """`values` minus `others`, over their common seeds."""
    return Paired(tuple(values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())))


def median_and_range(values: Sequence[float], digits: int = 3) -> str:
    """The median and the range, as in "0.712 (0.690–0.731)".

    >>> median_and_range([0.7, 0.5, 0.6])
    '0.600 (0.500–0.700)'
    """
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


class Results:
    """Rows of finished runs in one JSON file, one line each, with the provenance of every call."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.calls: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            stored = read_json(path, "the results of a study")
            self.calls, self.rows = stored["calls"], stored["rows"]
        self._here: int | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; the file is replaced atomically."""
        if self._here is None:
            self._here = len(self.calls)
            self.calls.append(provenance())
        self.rows.append({**row, "call": self._here})
        if self.path is not None:
            calls, rows = (",\n  ".join(map(json.dumps, part)) for part in (self.calls, self.rows))
            write_file(self.path, f'{{\n "calls": [\n  {calls}\n ],\n "rows": [\n  {rows}\n ]\n}}\n')
