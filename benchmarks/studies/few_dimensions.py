"""Study H, second part: K > d+1, where no simplex ETF exists. Class means, tight frame or learned vectors?

    python benchmarks/studies/few_dimensions.py --minutes 40    # after study A; repeat until none is left
    python benchmarks/studies/few_dimensions.py --dry-run
    python benchmarks/studies/few_dimensions.py --summary > tables.md

docs/protocol.md has the rules. The recipe `digits` has 4, 6 or 8 features for its ten classes. Class means and tight
frame have the implicit head's choice of study A, the learned head has its own and that one. The first part, classes
that arrive later, is `growing.py --seeds 5`. Two calls with different `--seeds` and `--json` may run in parallel.
"""

from __future__ import annotations

from dataclasses import replace

from scratch import FULL, SMALL, Data, Factor, Rows, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import comparison, groups  # type: ignore[import-not-found]

DIMENSIONS, HEADS = (4, 6, 8), ("learned", "class-mean", "tight-frame")


def narrow(digits: Data, d: int) -> Data:
    """Digits with d features."""
    return replace(digits, settings=replace(digits.settings, num_features=d), tuned_on="digits")


AS_OTHERS = {"rate": 0.003, "temperature": 5.0}  # the implicit head's choice on digits in study A
FACTORS = (
    *(Factor(f"d = {d}", HEADS, 20, data=f"digits, d = {d}") for d in DIMENSIONS),
    *(Factor(f"d = {d}, as others", ("learned",), 20, AS_OTHERS, f"digits, d = {d}") for d in DIMENSIONS),
)


def tables(rows: Rows) -> str:
    """By the number of features: accuracies, and differences to the learned head at both of its settings."""
    parts = []
    for d in DIMENSIONS:
        by_head = groups(rows, lambda row: row["head"], factor=f"d = {d}")
        again = groups(rows, lambda row: f"{row['head']}, rate and τ of the others", factor=f"d = {d}, as others")
        if by_head:
            parts += [f"**d = {d}**", *(comparison(again | by_head, opponent) for opponent in ("learned", *again))]
    return "\n\n".join(parts)


STUDY = Study(
    __doc__,
    "few-dimensions.json",
    FACTORS,
    tables,
    curves=False,
    small={f"digits, d = {d}": narrow(SMALL["digits"], d) for d in DIMENSIONS},
    full={f"digits, d = {d}": narrow(FULL["digits"], d) for d in DIMENSIONS},
)

if __name__ == "__main__":
    conduct(STUDY)
