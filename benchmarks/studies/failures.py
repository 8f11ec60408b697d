"""Study F: what breaks training, and does the log show it?

    python benchmarks/studies/failures.py --minutes 40    # after study A; repeat until none is left
    python benchmarks/studies/failures.py --dry-run
    python benchmarks/studies/failures.py --summary > tables.md

docs/protocol.md has the rules. Four heads train on digits with their choices of study A. Factors: small batches,
classes that are absent for the first half, a δ that is far too large, imbalance, wrong labels. Under imbalance, the
learned head's classifier is also projected to the nearest ETF after training, by `project_to_etf`. Two calls with
different `--seeds` and `--json` may run in parallel.
"""

from __future__ import annotations

import statistics
from collections import Counter

from scratch import FOUR, Factor, Rows, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import comparison, groups, markdown, median_and_range  # type: ignore[import-not-found]

FACTORS = (
    Factor("centre", FOUR, 5),
    *(Factor(f"batch {batch}", FOUR, 5, {"batch": batch}) for batch in (8, 16)),
    Factor("two classes absent for the first half", FOUR, 5, {"absent": 2}),
    *(Factor(f"δ {delta:g}", ("implicit",), 5, {"options": {"delta": delta}}) for delta in (1.0, 10.0)),
    *(Factor(f"imbalance {ratio:g}", FOUR, 5, {"imbalance": ratio}) for ratio in (0.1, 0.01)),
    *(Factor(f"label noise {noise:g}", FOUR, 5, {"noise": noise}) for noise in (0.2, 0.4)),
)


def tables(rows: Rows) -> str:
    """By factor: accuracies, those of the last three classes, and the solver diagnostics of the implicit head."""
    parts = []
    for factor in FACTORS:
        by_head = groups(rows, lambda row: row["head"], factor=factor.name)
        if by_head:
            parts += [f"**{factor.name}**", comparison(by_head, "learned"), signs(by_head)]
    return "\n\n".join(parts)


def signs(by_head: dict[str, Rows]) -> str:
    """Accuracy of the last three classes, solver health, and warnings with their numbers of runs."""
    lines = [["head", "last three classes", "gap", "condition", "drift", "fallbacks", "warnings (runs)"]]
    for head, rows in by_head.items():
        health = [row["health"] for row in rows if row.get("health")]
        cells = []
        for name in ("gap", "condition", "drift", "fallbacks"):
            values = [x[name] for x in health if x[name] is not None]
            cells.append(f"{statistics.median(values):.2g}" if values else "–")
        said = Counter(text for row in rows for text in row["warnings"])
        told = "; ".join(f"{text} ({n})" for text, n in said.items()) or "none"
        tail = [row["tail"] for row in rows if "tail" in row]
        lines.append([head, median_and_range(tail) if tail else "–", *cells, told])
        made = [row["projected"] for row in rows if "projected" in row]
        if made:
            whole, last = (median_and_range([x[name] for x in made]) for name in ("accuracy", "tail"))
            lines.append([f"{head}, projected", f"{last}, all classes {whole}", *["–"] * 4, "–"])
    return str(markdown(lines))


STUDY = Study(__doc__, "failures.json", FACTORS, tables, curves=False)

if __name__ == "__main__":
    conduct(STUDY)
