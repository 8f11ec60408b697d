"""Study H, second part: K > d+1, where no simplex ETF exists. Class means, tight frame or learned vectors?

    python benchmarks/studies/few_dimensions.py --minutes 40    # after study A; repeat until none is left
    python benchmarks/studies/few_dimensions.py --dry-run
    python benchmarks/studies/few_dimensions.py --summary > tables.md

docs/protocol.md has the rules. The recipe `digits` has 4, 6 or 8 features for its ten classes. The learned head has its
own choice of study A, the others that of the implicit head. The first part, classes that arrive later, is
`growing.py --seeds 5`. Two calls with different `--seeds` and `--json` may run in parallel.
"""

from __future__ import annotations

from dataclasses import replace

from scratch import FULL, SMALL, Data, Factor, Rows, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import comparison, groups  # type: ignore[import-not-found]

DIMENSIONS, HEADS = (4, 6, 8), ("learned", "class-mean", "tight-frame")


def narrow(digits: Data, d: int) -> Data:
    """Digits with d features."""
    return replace(digits, settings=replace(digits.settings, num_features=d), tuned_on="digits")


FACTORS = tuple(Factor(f"d = {d}", HEADS, 20, data=f"digits, d = {d}") for d in DIMENSIONS)


def tables(rows: Rows) -> str:
    """By the number of features: accuracies, and differences to the learned head."""
    parts = []
    for factor in FACTORS:
        by_head = groups(rows, lambda row: row["head"], factor=factor.name)
        if by_head:
            parts += [f"**{factor.name}**", comparison(by_head, "learned")]
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
